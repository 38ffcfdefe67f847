use super::*;

fn told(code: &[u8]) -> String {
    match run(code, 64) {
        Ok((value, ..)) => panic!("{code:?} makes {value:?}"),
        Err(error) => error.to_string(),
    }
}

fn long(head: &[u8], repeat: &[u8], times: usize, tail: &[u8]) -> Vec<u8> {
    [head, &repeat.repeat(times), tail].concat()
}

/// What `pickle.load` would have done was to run a command, open a file, or take an attribute of anything.
#[test]
fn nothing_is_called_by_any_way_to_name_it() {
    for (code, name) in [
        (&b"cos\nsystem\n(X\x04\x00\x00\x00truetR."[..], "'os.system'"),
        (b"cposix\nsystem\n)R.", "'posix.system'"),
        (b"c__builtin__\neval\n)R.", "'__builtin__.eval'"),
        (b"cbuiltins\ngetattr\n)R.", "'builtins.getattr'"),
        (b"ctorch\nload\n)R.", "'torch.load'"),
        (b"ctorch.storage\n_load_from_bytes\n)R.", "'torch.storage._load_from_bytes'"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "_rebuild_tensor_v2.__globals__'"),
        (b"ccollections\ndefaultdict\n)R.", "'collections.defaultdict'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.", "'os.system'"),
        (b"(ios\nsystem\n.", "the instruction INST"),
        (b"(cos\nsystem\no.", "'os.system'"),
        (b"(X\x01\x00\x00\x00ao.", "the instruction OBJ"),
        (b"ccollections\nOrderedDict\n)\x81.", "the instruction NEWOBJ"),
        (b"\x82\x01.", "the instruction EXT"),
        (b"Pabc\n.", "the instruction PERSID"),
        (b"\x96\x00\x00\x00\x00\x00\x00\x00\x00.", "the instruction BYTEARRAY8"),
        (b"\x8f.", "the instruction a set"),
        (b"I1\n.", "the instruction an instruction of protocol 0"),
        (b"\xff.", "the unknown instruction 0xff"),
        (b"X\x01\x00\x00\x00a)R.", "a call of a str"),
        (b"ctorch\nFloatStorage\n)R.", "a call of Storage"),
        (b"ctorch\nfloat32\n)R.", "a call of Element"),
        (b"]}b.", "the state of a list"),
    ] {
        let told = told(code);
        assert!(told.contains(name) && told.contains("not done here"), "{told}");
    }
}

#[test]
fn a_pickle_is_bounded_in_every_direction() {
    let limit = |code: &[u8]| matches!(run(code, 64), Err(ReadError::TooLarge { .. }));
    assert!(limit(&long(b"", b"(", MAX_STACK + 1, b".")), "marks");
    assert!(limit(&long(b"", b"N", MAX_STACK + 1, b".")), "values");
    assert!(limit(&long(b"N", b"2", MAX_STACK + 1, b".")), "copies");
    assert!(limit(&long(b"", b"N0", 1 << 20, b".")), "steps");
    let remembered: Vec<u8> = (0..=MAX_MEMO as u32).flat_map(|i| [&b"r"[..], &i.to_le_bytes()].concat()).collect();
    assert!(limit(&[b"N", &remembered[..], b"."].concat()), "memo");
    assert!(limit(&long(b"N", b"\x94", MAX_MEMO + 1, b".")), "memo");
    // Nested as deep as the stack allows: nothing recurses, neither now nor when it is dropped.
    let nested = long(b")", b"\x85", 1_000_000, b".");
    let (value, ..) = run(&nested, 64).unwrap();
    assert!(matches!(value, Value::Tuple(_)));
    run(&long(b"", b"]", 60_000, &long(b"", b"a", 59_999, b".")), 64).unwrap();
    assert!(told(b"\x8b\xff\xff\xff\xff.").contains("an integer of 4294967295 bytes"));
    assert!(told(b"\x8a\xff.").contains("an integer of 255 bytes"));
    assert!(told(&long(b"c", b"a", 1 << 20, b"\nb\n.")).contains("has no end"));
    let tensor = [
        &b"ctorch._utils\n_rebuild_tensor\nq\x01((X\x07\0\0\0storagectorch\nFloatStorage\n"[..],
        b"X\x01\0\0\0aX\x03\0\0\0cpuK\x01tQK\0)q\x02h\x02tq\x03R",
    ];
    let again = b"0h\x01h\x03R";
    run(&long(&tensor.concat(), again, 63, b"."), 64).unwrap();
    assert!(limit(&long(&tensor.concat(), again, 64, b".")), "tensors");
    for code in [
        &b"X\xff\xff\xff\xff"[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"T\0\0\0\x80",
    ] {
        assert!(told(code).contains("cut short"));
    }
}

#[test]
fn what_is_not_whole_is_refused() {
    for (code, words) in [
        (&b""[..], "cut short"),
        (b"N", "cut short"),
        (b"NN.", "more than one value"),
        (b"(N.", "more than one value"),
        (b"h\x07.", "recalls 7"),
        (b"j\xff\xff\xff\xff.", "recalls 4294967295"),
        (b"(0.", "takes more than there is"),
        (b"N(0.", "takes more than there is"),
        (b"Na.", "takes more than there is"),
        (b"NNa.", "appends to what is no list"),
        (b"NNNs.", "no dict"),
        (b"}(Nu.", "has no value"),
        (b"N\x93.", "takes more than there is"),
        (b"NN\x93.", "is no str"),
        (b"NQ.", "not that of a storage"),
        (b"\x80\x01N.", "protocol 1"),
        (b"\x80\x06N.", "protocol 6"),
        (b"X\x01\x00\x00\x00\xff.", "not UTF-8"),
        (b"ccollections\nOrderedDict\nNR.", "other arguments"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "other arguments"),
    ] {
        let told = told(code);
        assert!(told.contains(words), "{told}");
    }
    // Every instruction alone, and on top of one value of each kind: an answer, whatever it is.
    for first in 0..=255 {
        for under in [&b""[..], b"N", b"]", b"}", b")", b"(", b"K\x01", b"X\x01\0\0\0a"] {
            let _ = run(&[under, &[first], b"\0\0\0\0\0\0\0\0."].concat(), 64);
        }
    }
}

/// Python 2 wrote an OrderedDict with the list of its pairs, which was refused.
#[test]
fn an_ordered_dict_of_python_2_is_read() {
    for (arguments, entries) in
        [(&b"]"[..], 0), (b"(]X\x01\0\0\0aaK\x01al", 1), (b"((X\x01\0\0\0aK\x01t(X\x01\0\0\0bK\x02tl", 2)]
    {
        let code = [&b"ccollections\nOrderedDict\n("[..], arguments, b"tR."].concat();
        let (value, heap, _) = run(&code, 64).unwrap();
        assert_eq!(value, Value::Dict(0));
        assert_eq!(heap.dicts[0].len(), entries);
    }
    assert!(told(b"ccollections\nOrderedDict\n((K\x01ltR.").contains("other arguments"));
}

#[test]
fn what_holds_itself_is_no_tensor() {
    for code in [&b"]q\x00h\x00a."[..], b"}q\x00X\x01\0\0\0ah\x00s.", b"]q\x00(h\x00tq\x01a."] {
        run(code, 64).unwrap();
    }
}

#[test]
fn numbers_are_those_that_python_wrote() {
    for (code, value) in [
        (&b"J\xff\xff\xff\xff."[..], Value::Int(-1)),
        (b"K\xff.", Value::Int(255)),
        (b"M\x00\x01.", Value::Int(256)),
        (b"\x8a\x00.", Value::Int(0)),
        (b"\x8a\x01\xff.", Value::Int(-1)),
        (b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f.", Value::Int(i64::MAX)),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00.", Value::Long(b"\xff\xff\xff\xff\xff\xff\xff\xff\x00")),
        (b"G\0\0\0\0\0\0\0\0.", Value::Float),
        (b"\x88.", Value::Bool(true)),
    ] {
        assert_eq!(run(code, 64).unwrap().0, value);
    }
}
