//! The service, declared in Rust: what protoc would read from
//! `service Peer { rpc Echo(Blob) returns (Blob); rpc Put(Blob) returns (Done); }`.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let method = |name: &str, route: &str, output: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type("crate::Blob")
            .output_type(output)
            .codec_path("tonic_prost::ProstCodec")
            .build()
    };
    let service = Service::builder()
        .name("Peer")
        .package("peers")
        .method(method("echo", "Echo", "crate::Blob"))
        .method(method("put", "Put", "crate::Done"))
        .build();
    Builder::new().compile(&[service]);
}
