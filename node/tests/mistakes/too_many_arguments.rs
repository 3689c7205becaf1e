// error: cannot be used as a handler
// help: with at most six arguments
use roomcast::Namespace;

fn main() {
    Namespace::new("/").on(
        "many",
        async |_: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8| (),
    );
}
