//! The HTTP door of a server: what it answers, to whom, and what it takes.

mod access;
mod client;
mod hostile;
mod limits;
mod values;

use std::process::Command;

use genie_graph::DType;
use genie_tensor_files::{Contents, Format, Tensor};
use serde_json::{Value, json};

use self::client::{Door, Form, f32s, file, tensor};

/// As they stand in docs/http.md, but for the port.
#[test]
fn the_two_commands_of_the_documentation() {
    let (door, folder) = (Door::open(&[]), tempfile::tempdir().unwrap());
    let x = f32s(&[2, 3], &[-1.0, 0.0, 1.5, 2.0, -3.0, 4.0]);
    std::fs::write(folder.path().join("tensor.pt"), file(Format::Pt, &Contents::One(x))).unwrap();
    let curl = |words: &str| {
        let words = words.replace("http://localhost:8888", &format!("http://localhost:{}", door.port()));
        let output =
            Command::new("curl").args(words.split(' ')).current_dir(folder.path()).output().expect("curl starts");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let health: Value = serde_json::from_slice(&curl("http://localhost:8888/health")).unwrap();
    assert_eq!(
        (&health["status"], &health["device"], &health["device_type"]),
        (&json!("healthy"), &json!("cpu:0"), &json!("cpu"))
    );
    assert_eq!((&health["cuda_available"], &health["stats"]["total_requests"]), (&json!(false), &json!(0)));
    assert!(
        health["devices"][0]["memory_total_bytes"].as_u64() > Some(0) && health["uptime_seconds"].as_f64() > Some(0.0)
    );
    curl("-X POST http://localhost:8888/execute -F operation=relu -F tensor_file=@tensor.pt --output result.pt");
    let result = std::fs::read(folder.path().join("result.pt")).unwrap();
    assert_eq!(tensor(&result), f32s(&[2, 3], &[0.0, 0.0, 1.5, 2.0, 0.0, 4.0]));
    let health: Value = serde_json::from_slice(&curl("http://localhost:8888/health")).unwrap();
    assert_eq!(health["stats"], json!({"total_requests": 1, "successful": 1, "failed": 0}));
}

#[test]
fn results_come_in_the_format_that_came_and_can_be_sent_again() {
    let door = Door::open(&[]);
    for format in [Format::Pt, Format::Npy, Format::Safetensors] {
        let mut now = file(format, &Contents::One(f32s(&[3], &[-1.0, 0.25, 2.0])));
        for operation in ["relu", "sqrt", "neg"] {
            let answer = door.post("/execute", &Form::new().text("operation", operation).file("tensor_file", &now));
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.header("x-genie-device"), "cpu:0");
            assert_eq!(
                (answer.header("x-genie-bytes-out"), answer.header("content-type")),
                ("12", "application/octet-stream")
            );
            assert!(answer.header("content-disposition").contains(&format!("result.{}", format.extension())));
            now = answer.body;
        }
        assert_eq!(Format::of(&now), Some(format));
        assert_eq!(tensor(&now), f32s(&[3], &[-0.0, -0.5, -(2.0_f32.sqrt())]));
    }
    // A name stays.
    let named = file(Format::Safetensors, &Contents::Dict(vec![("w".to_owned(), f32s(&[1], &[4.0]))]));
    let answer = door.post("/execute", &Form::new().text("operation", "sqrt").file("tensor_file", &named));
    let read = genie_tensor_files::read(&answer.body.into(), &Default::default()).unwrap().1;
    assert_eq!(read, Contents::Dict(vec![("w".to_owned(), f32s(&[1], &[2.0]))]));
}

#[test]
fn ops_take_several_tensors_and_arguments_by_field_and_by_json() {
    let door = Door::open(&[]);
    let run = |form: Form| {
        let answer = door.post("/execute", &form);
        assert_eq!(answer.status, 200, "{}", answer.text());
        tensor(&answer.body)
    };
    let pt = |tensor: Tensor| file(Format::Pt, &Contents::One(tensor));
    let (a, b) = (pt(f32s(&[2, 2], &[1.0, 2.0, 3.0, 4.0])), pt(f32s(&[2, 2], &[0.0, 1.0, 1.0, 0.0])));
    let two = |op| Form::new().text("operation", op).file("tensor_file", &a).file("tensor_file_2", &b);
    assert_eq!(run(two("matmul")), f32s(&[2, 2], &[2.0, 1.0, 4.0, 3.0]));
    assert_eq!(run(two("sub").text("alpha", "2")), f32s(&[2, 2], &[1.0, 0.0, 1.0, 4.0]));
    assert_eq!(run(two("cat").text("dim", "-1")), f32s(&[2, 4], &[1.0, 2.0, 0.0, 1.0, 3.0, 4.0, 1.0, 0.0]));
    let one = |op| Form::new().text("operation", op).file("tensor_file", &a);
    assert_eq!(run(one("sum").text("dim", "0").text("keepdim", "True")), f32s(&[1, 2], &[4.0, 6.0]));
    assert_eq!(run(one("mean").text("kwargs", r#"{"dim": [0, 1]}"#)), f32s(&[], &[2.5]));
    assert_eq!(run(one("mul").text("other", ".5").text("device", "cpu")), f32s(&[2, 2], &[0.5, 1.0, 1.5, 2.0]));
    assert_eq!(run(one("permute").text("dims", "(1, 0)")), f32s(&[2, 2], &[1.0, 3.0, 2.0, 4.0]));
    let ids = run(one("argmax").text("dim", "1"));
    assert_eq!((ids.dtype, &ids.data[..]), (DType::I64, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..]));
    let table = pt(f32s(&[3, 1], &[5.0, 6.0, 7.0]));
    let ids = pt(Tensor { dtype: DType::I32, dims: vec![2], data: vec![2, 0, 0, 0, 0, 0, 0, 0].into() });
    let form = Form::new().text("operation", "embedding").file("tensor_file", &ids).file("tensor_file_2", &table);
    assert_eq!(run(form), f32s(&[2, 1], &[7.0, 5.0]));
}

/// Large tensors are put and got; what they took on the device is given back.
#[test]
fn large_tensors_go_by_other_ways_and_leave_nothing() {
    let door = Door::open(&[]);
    let values: Vec<f32> = (0..1_000_000).map(|i| (i % 2001) as f32 - 1000.0).collect();
    let large = file(Format::Pt, &Contents::One(f32s(&[1000, 1000], &values)));
    for _ in 0..3 {
        let answer = door.post("/execute", &Form::new().text("operation", "relu").file("tensor_file", &large));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let expected: Vec<f32> = values.iter().map(|x| x.max(0.0)).collect();
        assert_eq!(tensor(&answer.body), f32s(&[1000, 1000], &expected));
    }
    // Freed when the answer is on its way, or a little later: the program and its binding stay.
    let held = |name: &str| {
        let metrics = door.get("/metrics").text();
        metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).expect("it is counted")
    };
    client::soon("tensors and bindings are freed", || {
        held("genie_handles ") == 2 && held("genie_session_bytes ") < 10_000
    });
    let metrics = door.get("/metrics").text();
    assert!(metrics.contains("genie_http_requests_total{endpoint=\"/execute\",status=\"200\"} 3"), "{metrics}");
    assert!(metrics.lines().any(|line| line == "genie_http_held_bytes 0"), "{metrics}");
    assert!(metrics.lines().any(|line| line.starts_with("genie_runs_total ")), "{metrics}");
}

#[test]
fn a_subgraph_is_one_request() {
    let door = Door::open(&[]);
    let (x, w) = (f32s(&[1, 2], &[1.0, -2.0]), f32s(&[2, 2], &[1.0, 0.0, 0.0, 3.0]));
    let operations = json!([
        {"op_id": 10, "operation": "matmul", "inputs": ["x", 2], "kwargs": {}},
        {"op_id": 11, "operation": "aten::relu", "inputs": [10]},
        {"op_id": "sum", "operation": "add", "inputs": [11, "x"], "kwargs": {"alpha": 2}},
    ]);
    let request = |inputs: Value, output: Value| {
        json!({"operations": operations, "input_tensors": inputs, "output_id": output}).to_string()
    };
    let run = |request: String, files: &[Vec<u8>]| {
        let form = files.iter().fold(Form::new().text("request", &request), |form, file| form.file("tensors", file));
        door.post("/execute_subgraph", &form)
    };
    let one = |tensor: &Tensor| file(Format::Npy, &Contents::One(tensor.clone()));
    let dict = file(Format::Pt, &Contents::Dict(vec![("x".to_owned(), x.clone()), ("weight".to_owned(), w.clone())]));
    let list = file(Format::Pt, &Contents::List(vec![x.clone(), w.clone()]));
    let expected = f32s(&[1, 2], &[3.0, -4.0]);
    for (inputs, files) in [
        (json!(["x", 2]), vec![one(&x), one(&w)]),
        (json!(["x", "2"]), vec![list]),
        (json!({"x": "x", "2": "weight"}), vec![dict]),
        (json!({"x": 0, "2": 1}), vec![one(&x), one(&w)]),
    ] {
        let answer = run(request(inputs.clone(), json!("sum")), &files);
        assert_eq!(answer.status, 200, "{inputs}: {}", answer.text());
        assert_eq!(tensor(&answer.body), expected, "{inputs}");
        assert!(answer.header("server-timing").contains("run;dur=") && !answer.header("x-genie-bytes-in").is_empty());
    }
    let files = [one(&x), one(&w)];
    let answer = run(request(json!(["x", 2]), json!(11)), &files);
    assert_eq!(tensor(&answer.body), f32s(&[1, 2], &[1.0, 0.0]));
    for (request, words) in [
        (request(json!(["x", 2]), json!(12)), "no operation has that id"),
        (request(json!(["x", 2]), json!("x")), "no operation has that id"),
        (request(json!(["x"]), json!("sum")), "has 1 ids, but 'tensors' has 2"),
        (request(json!(["x", "x"]), json!("sum")), "two tensors have the id"),
        (request(json!(["x", "y"]), json!("sum")), "reads '2', which is neither"),
        (request(json!({"x": "x"}), json!("sum")), "holds no 'x'"),
        (request(json!(["x", 10]), json!("sum")), "operation '10'"),
        ("{".to_owned(), "is not what it should be"),
        (json!({"operations": [], "output_id": 1, "more": 2}).to_string(), "unknown field"),
        (json!({"operations": [], "output_id": 1}).to_string(), "no operation has that id"),
        ("[".repeat(100_000), "is not what it should be"),
    ] {
        let answer = run(request, &files);
        assert_eq!(answer.status, 422, "{words}: {}", answer.text());
        assert!(answer.detail().contains(words), "{words}: {}", answer.detail());
    }
    let request = json!({"operations": [{"op_id": 1, "operation": "what", "inputs": ["0"]}], "output_id": 1});
    let answer = run(request.to_string(), &files);
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.detail().contains("operation '1'") && answer.json()["operations"].is_array());
}

#[test]
fn what_is_wrong_is_said_with_the_right_status() {
    let door = Door::open(&[]);
    let x = file(Format::Pt, &Contents::One(f32s(&[2], &[1.0, 2.0])));
    let none = file(Format::Npy, &Contents::One(f32s(&[0], &[])));
    let several = file(Format::Pt, &Contents::List(vec![f32s(&[], &[1.0])]));
    let relu = || Form::new().text("operation", "relu");
    for (form, status, words) in [
        (Form::new(), 422, "'operation' is missing"),
        (relu(), 422, "'tensor_file' is missing"),
        (Form::new().file("tensor_file", &x), 422, "'operation' is missing"),
        (relu().text("operation", "relu").file("tensor_file", &x), 422, "'operation' is given twice"),
        (relu().file("tensor", &x), 422, "'tensor' is unknown"),
        (relu().file("tensor_file", &x).text("dim", "1"), 422, "takes no argument 'dim'"),
        (relu().file("tensor_file", &x).text("kwargs", "[]"), 422, "must be a JSON object"),
        (relu().file("tensor_file", &x).text("device", "cuda:7"), 422, "there are: cpu:0"),
        (relu().file("tensor_file", &x).file("tensor_file", &x), 422, "takes 1 tensor(s), not 2"),
        (relu().file("tensor_file", b"PNG"), 400, "no .pt, .npy or .safetensors file"),
        (relu().file("tensor_file", &x[..x.len() - 1]), 400, "damaged"),
        (relu().file("tensor_file", &several), 422, "must hold one tensor"),
        (relu().file("tensor_file", &none), 422, "must not be empty"),
        (relu().file("tensor_file", b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR."), 400, "'os.system'"),
        (Form::new().text("operation", "relo").file("tensor_file", &x), 400, "no op 'relo'"),
        (
            Form::new().text("operation", "to").text("dtype", "bfloat16").file("tensor_file", &npy(&[1.0])),
            422,
            "cannot hold bf16",
        ),
    ] {
        let answer = door.post("/execute", &form);
        assert_eq!(answer.status, status, "{words}: {}", answer.text());
        assert!(answer.detail().contains(words), "{words}: {}", answer.detail());
    }
    let answer = door.post("/execute", &Form::new().text("operation", "relo").file("tensor_file", &x));
    assert!(answer.json()["operations"].as_array().unwrap().contains(&json!("relu")));
    // Integers that cannot be divided, and ids that are in no table, are seen only when it runs.
    let ids =
        file(Format::Pt, &Contents::One(Tensor { dtype: DType::I32, dims: vec![1], data: vec![9, 0, 0, 0].into() }));
    let form =
        Form::new().text("operation", "embedding").file("tensor_file", &ids).file("tensor_file_2", &npy2(&[1.0]));
    let answer = door.post("/execute", &form);
    assert_eq!(answer.status, 422, "{}", answer.text());
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/execute", 405),
        ("POST", "/health", 405),
        ("DELETE", "/", 405),
        ("GET", "/health", 200),
    ] {
        let answer = door.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(status == 200 || answer.json()["detail"].is_string());
        assert_eq!(!answer.header("allow").is_empty(), status == 405, "{method} {path}");
    }
    let plain = "POST /execute HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nab";
    assert_eq!(door.send(plain).status, 415);
    let stats = &door.health()["stats"];
    assert_eq!(stats["total_requests"].as_u64().unwrap(), stats["failed"].as_u64().unwrap());
}

fn npy(values: &[f32]) -> Vec<u8> {
    file(Format::Npy, &Contents::One(f32s(&[values.len() as u64], values)))
}

fn npy2(values: &[f32]) -> Vec<u8> {
    file(Format::Npy, &Contents::One(f32s(&[values.len() as u64, 1], values)))
}
