// error: `u8` cannot be the result of this handler
// help: return `()`, or a `Result` with any error
use roomcast::{Namespace, Socket};

fn main() {
    Namespace::new("/").on_connect(async |_: Socket| 5_u8);
}
