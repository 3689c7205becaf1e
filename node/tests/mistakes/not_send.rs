// error: cannot be sent between threads safely
use std::rc::Rc;

use roomcast::{Namespace, Socket};

fn main() {
    Namespace::new("/").on("keep", async |_: Socket| {
        let kept = Rc::new(());
        std::future::ready(()).await;
        drop(kept);
    });
}
