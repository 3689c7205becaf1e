// error: `Point` cannot be an argument of a handler here
// help: what implements `serde::Deserialize`
use roomcast::{Namespace, Socket};

struct Point;

fn main() {
    Namespace::new("/").on("move", async |_: Socket, _: u8, _: Point| ());
}
