// error: `std::string::String` cannot be an argument of a handler here
// help: take it as `State<std::string::String>`
use roomcast::{Namespace, Socket};

fn main() {
    Namespace::new("/").on_connect(async |_: Socket, _: String| ());
}
