// error: `u8` is not a future
use roomcast::{Namespace, Socket};

fn main() {
    Namespace::new("/").on("count", |_: Socket| 5_u8);
}
