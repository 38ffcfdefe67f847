//! What every link must do, with the same assertions for each. A link joins by one line at the end, and an implementation of
//! [`link::Link`].

mod lanes;
mod link;
#[cfg(feature = "rdma")]
mod rdma;
mod shm;
mod sim;
mod suite;
mod tcp;

/// The suite as tests of one link.
macro_rules! conforms {
    ($name:ident, $link:ty) => {
        mod $name {
            conforms!(@ $link: every_size_comes_back, ranges, pipelined_requests, small_requests_do_not_wait_behind_bulk,
                a_generate_can_be_cancelled, steps_are_asked_for_ahead, runs_name_residents, an_upload_goes_on_where_it_was_cut,
                a_download_that_is_cut_is_whole, a_session_is_taken_up_by_its_token, two_clients, corruption_is_not_seen,
                bulk_is_not_copied, refusals_are_told, weights_are_known_by_one_hash);
        }
    };
    (@ $link:ty: $($test:ident),+) => {
        $(#[test]
        fn $test() {
            if <$link as crate::link::Link>::is_here() {
                crate::suite::$test::<$link>();
            }
        })+
    };
}

/// What a link must do whose bulk lanes can break one by one.
macro_rules! survives_lanes {
    ($name:ident, $link:ty) => {
        mod $name {
            survives_lanes!(@ $link: a_lane_is_cut, a_lane_is_garbled, a_lane_stands_still, the_only_lane_is_cut,
                the_only_lane_stands_still, small_requests_go_on);
        }
    };
    (@ $link:ty: $($test:ident),+) => {
        $(#[test]
        fn $test() {
            if <$link as crate::link::Link>::is_here() {
                crate::lanes::$test::<$link>();
            }
        })+
    };
}

conforms!(over_tcp, crate::tcp::Tcp);
conforms!(over_shm, crate::shm::InSlices);
#[cfg(target_os = "linux")]
conforms!(over_uring, crate::tcp::Sockets<true, true>);
#[cfg(target_os = "linux")]
conforms!(from_uring_to_tcp, crate::tcp::Sockets<false, true>);
#[cfg(target_os = "linux")]
conforms!(from_tcp_to_uring, crate::tcp::Sockets<true, false>);
conforms!(simulated, crate::sim::Simulated);
survives_lanes!(lanes_over_tcp, crate::tcp::Tcp);
#[cfg(target_os = "linux")]
survives_lanes!(lanes_over_uring, crate::tcp::Sockets<true, true>);
survives_lanes!(lanes_over_tcps, crate::tcp::Tcps);
#[cfg(target_os = "linux")]
survives_lanes!(lanes_over_urings, crate::tcp::Sockets<true, true, true>);
survives_lanes!(lanes_over_shm, crate::shm::InSlices);
survives_lanes!(lanes_simulated, crate::sim::Simulated);
#[cfg(feature = "rdma")]
conforms!(over_rdma, crate::rdma::Rdma);
#[cfg(feature = "rdma")]
mod lanes_over_rdma {
    survives_lanes!(@ crate::rdma::Rdma: a_lane_is_cut, a_lane_is_garbled, the_only_lane_is_cut, small_requests_go_on);
}

/// Lanes of unlike speed.
mod unlike_lanes {
    #[test]
    fn over_tcp() {
        crate::lanes::a_slow_lane_carries_less::<crate::tcp::Tcp>();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn over_uring() {
        if genie_tests::here::has("uring") {
            crate::lanes::a_slow_lane_carries_less::<crate::tcp::Sockets<true, true>>();
        }
    }

    #[test]
    fn over_tcps() {
        crate::lanes::a_slow_lane_carries_less::<crate::tcp::Tcps>();
    }

    #[test]
    fn over_shm() {
        crate::lanes::a_slow_lane_carries_less::<crate::shm::InSlices>();
    }
}

conforms!(over_tcps, crate::tcp::Tcps);
#[cfg(target_os = "linux")]
conforms!(over_urings, crate::tcp::Sockets<true, true, true>);
#[cfg(target_os = "linux")]
conforms!(from_tcps_to_urings, crate::tcp::Sockets<true, false, true>);

/// Where large tensors are passed there are no bytes to count, hold back or corrupt: the rest of the suite, and a connection that is
/// cut at any moment.
mod over_shm_by_reference {
    conforms!(@ crate::shm::ByReference: every_size_comes_back, ranges, pipelined_requests, a_generate_can_be_cancelled,
        steps_are_asked_for_ahead, a_session_is_taken_up_by_its_token, two_clients, refusals_are_told,
        weights_are_known_by_one_hash);

    #[test]
    fn what_is_passed_while_it_is_cut_is_whole() {
        crate::shm::what_is_passed_while_it_is_cut_is_whole();
    }
}
