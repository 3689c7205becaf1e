// error: `Result<(), std::io::Error>` cannot be the answer of a handler
// help: `roomcast::HandlerResult`
use roomcast::{Namespace, Socket};

fn main() {
    Namespace::new("/").on("save", async |_: Socket| Err::<(), _>(std::io::Error::other("full")));
}
