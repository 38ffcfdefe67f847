//! Rows by ids.

use genie_cuda_kernels::launch::gather::{Scatter, embedding, gather, scatter};
use genie_graph::DType;

use super::support::{FLOATS, Numbers, Tensor, fault, fault_word, rounded, run, run_any_grid, run_over};

const IDS: [DType; 2] = [DType::I32, DType::I64];

/// Ids, some of them no rows of a table of `bound`.
fn ids(dtype: DType, count: u64, bound: u64, faulty: bool) -> Tensor {
    let mut numbers = Numbers::new(count);
    let mut ids: Vec<f64> = (0..count).map(|_| numbers.below(bound) as f64).collect();
    if faulty && count > 3 {
        let last = ids.len() - 1;
        (ids[last], ids[last / 2]) = (bound as f64, -1.0);
    }
    Tensor::new(dtype, &ids)
}

fn expected_rows(table: &[f64], width: usize, bound: u64, ids: &Tensor) -> Vec<f64> {
    let row = |id: f64| match id {
        id if id >= 0.0 && id < bound as f64 => table[id as usize * width..][..width].to_vec(),
        _ => vec![0.0; width],
    };
    ids.values().into_iter().flat_map(row).collect()
}

fn first_fault(ids: &Tensor, bound: u64) -> Option<u64> {
    ids.values().iter().position(|&id| id < 0.0 || id >= bound as f64).map(|i| i as u64)
}

#[test]
fn rows_are_gathered() {
    for dtype in DType::ALL {
        for (bound, width, count) in [(7, 1, 40), (5, 16, 9), (30, 77, 13), (3, 1031, 5), (2, 8192, 2), (4, 3, 0)] {
            let values = Numbers::new(width).integers(dtype, bound * width, 90);
            let table = Tensor::new(dtype, &values);
            for id_type in IDS {
                for faulty in [false, true] {
                    let ids = ids(id_type, count, bound, faulty);
                    let (mut y, mut word) = (Tensor::poisoned(dtype, (count * width) as usize), fault_word());
                    let launch = gather(table.view(), bound, width, ids.view(), y.view(), word.at());
                    run_any_grid(&[launch.expect("a launch")], &mut [&mut y, &mut word]);
                    let expected = expected_rows(&table.values(), width as usize, bound, &ids);
                    assert_eq!(y.values(), expected, "{bound} x {width} {dtype}");
                    assert_eq!(fault(&word), first_fault(&ids, bound));
                }
            }
        }
    }
}

#[test]
fn rows_at_odd_addresses_are_gathered() {
    for dtype in [DType::U8, DType::F16, DType::F32] {
        let (table, ids) =
            (Tensor::new(dtype, &Numbers::new(1).integers(dtype, 161, 90)), ids(DType::I32, 11, 10, true));
        let (mut y, mut word) = (Tensor::poisoned(dtype, 179), fault_word());
        run(gather(table.tail(1), 10, 16, ids.view(), y.tail(3), word.at()), &mut [&mut y, &mut word]);
        assert_eq!(y.values()[3..], expected_rows(&table.values()[1..], 16, 10, &ids));
        assert_eq!(fault(&word), first_fault(&ids, 10));
    }
}

#[test]
fn embeddings_are_converted() {
    for from in FLOATS {
        for to in FLOATS {
            for (bound, width, count, first) in
                [(7, 1, 40, 0), (5, 16, 9, 0), (30, 77, 13, 0), (3, 1032, 5, 0), (3, 16, 5, 1)]
            {
                let table = Tensor::random(from, (first + bound * width) as usize, 3.0, 7);
                let ids = ids(DType::I64, count, bound, count == 9);
                let (mut y, mut word) = (Tensor::poisoned(to, (count * width) as usize), fault_word());
                let launch = embedding(table.tail(first), bound, width, ids.view(), y.view(), word.at());
                run_any_grid(&[launch.expect("a launch")], &mut [&mut y, &mut word]);
                let values = &table.values()[first as usize..];
                let expected = rounded(to, &expected_rows(values, width as usize, bound, &ids));
                assert_eq!(y.values(), expected, "{bound} x {width} {from} to {to}");
                assert_eq!(fault(&word), first_fault(&ids, bound));
            }
        }
    }
}

#[test]
fn the_last_of_equal_ids_wins() {
    for dtype in DType::ALL {
        for (bound, width, count) in [(7, 1, 40), (5, 16, 9), (30, 77, 13), (4, 1031, 6), (6, 4, 0), (0, 3, 5)] {
            let mut numbers = Numbers::new(bound + width);
            let x = Tensor::new(dtype, &numbers.integers(dtype, bound * width, 90));
            let updates = Tensor::new(dtype, &numbers.integers(dtype, count * width, 90));
            let ids = ids(DType::I32, count, bound.max(1), count == 9);
            let (mut scratch, mut word) = (Tensor::poisoned(DType::I32, bound as usize), fault_word());
            let mut y = Tensor::poisoned(dtype, (bound * width) as usize);
            let s = Scatter {
                x: x.view(),
                bound,
                width,
                ids: ids.view(),
                updates: updates.view(),
                y: y.view(),
                scratch: scratch.view(),
                fault: word.at(),
            };
            let launches: Vec<_> = scatter(s).expect("launches").into_iter().map(Some).collect();
            run_any_grid(&launches, &mut [&mut y, &mut scratch, &mut word]);
            let (mut expected, updates, w) = (x.values(), updates.values(), width as usize);
            for (i, id) in ids.values().into_iter().enumerate() {
                if id >= 0.0 && id < bound as f64 {
                    expected[id as usize * w..][..w].copy_from_slice(&updates[i * w..][..w]);
                }
            }
            assert_eq!(y.values(), expected, "{bound} x {width} {dtype}");
            assert_eq!(fault(&word), first_fault(&ids, bound));
            // The same in place.
            let mut x = x;
            let launches = scatter(Scatter { y: x.view(), ..s }).expect("launches");
            run_over(&launches.into_iter().map(Some).collect::<Vec<_>>(), &mut x);
            assert_eq!(x.values(), expected, "{bound} x {width} {dtype} in place");
        }
    }
}

#[test]
fn what_cannot_be_launched_is_refused() {
    let (table, ids, word) = (Tensor::poisoned(DType::F32, 12), Tensor::poisoned(DType::I32, 2), fault_word());
    let y = Tensor::poisoned(DType::F32, 8);
    let with = |bound, width, y: &Tensor| gather(table.view(), bound, width, ids.view(), y.view(), word.at());
    assert!(with(3, 4, &y).is_ok());
    assert!(with(4, 4, &y).is_err());
    assert!(with(u64::MAX, 4, &y).is_err());
    assert!(with(3, 4, &Tensor::poisoned(DType::F16, 8)).is_err());
    assert!(gather(table.view(), 3, 4, y.view(), y.view(), word.at()).is_err());
    assert!(gather(table.view(), 3, 4, ids.view(), y.view(), word.at() + 4).is_err());
    assert!(embedding(table.view(), 3, 4, ids.view(), ids.view(), word.at()).is_err());
}
