//! Processes that are killed, stopped, and cut off in the middle of what they do, over every link. A link joins by one line at the
//! end.

mod half_open;
mod kills;
mod place;
mod roles;
mod scarce;

/// The tests of one link.
macro_rules! over {
    ($name:ident, $scheme:literal: $($part:ident::$test:ident),+ $(,)?) => {
        mod $name {
            $(#[test]
            fn $test() {
                if genie_tests::here::has($scheme) {
                    crate::$part::$test($scheme);
                }
            })+
        }
    };
}

over!(shm, "shm": kills::clients_are_killed, kills::servers_are_killed, half_open::a_server_that_stops,
    half_open::a_client_that_stops, scarce::descriptors_run_out);
#[cfg(target_os = "linux")]
over!(uring, "uring": kills::clients_are_killed, kills::servers_are_killed, half_open::a_server_that_stops,
    half_open::a_client_that_stops, scarce::descriptors_run_out);
over!(tcp, "tcp": kills::clients_are_killed, kills::servers_are_killed, half_open::a_server_that_stops,
    half_open::a_client_that_stops, scarce::descriptors_run_out);
over!(tcps, "tcps": kills::clients_are_killed, kills::servers_are_killed, half_open::a_server_that_stops,
    half_open::a_client_that_stops, scarce::descriptors_run_out);
#[cfg(target_os = "linux")]
over!(urings, "urings": kills::clients_are_killed, kills::servers_are_killed, half_open::a_server_that_stops,
    half_open::a_client_that_stops, scarce::descriptors_run_out);
#[cfg(feature = "rdma")]
over!(rdma, "rdma": kills::clients_are_killed, kills::servers_are_killed, half_open::a_server_that_stops,
    half_open::a_client_that_stops);
