// error: `Ack` cannot be an argument of a handler here
// help: handlers of events take `Socket`, `Ack`
use roomcast::{Ack, Namespace, Socket};

fn main() {
    Namespace::new("/").on_connect(async |_: Socket, _: Ack| ());
}
