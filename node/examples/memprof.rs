use roomcast::{Namespace, Server, Socket};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
struct C;
static LIVE: [AtomicI64; 4096] = [const { AtomicI64::new(0) }; 4096];
static BIG: AtomicI64 = AtomicI64::new(0);
unsafe impl GlobalAlloc for C {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        if l.size() < 4096 {
            LIVE[l.size()].fetch_add(1, Relaxed);
        } else {
            BIG.fetch_add(l.size() as i64, Relaxed);
        }
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        if l.size() < 4096 {
            LIVE[l.size()].fetch_sub(1, Relaxed);
        } else {
            BIG.fetch_sub(l.size() as i64, Relaxed);
        }
        unsafe { System.dealloc(p, l) }
    }
}
#[global_allocator]
static A: C = C;
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let io = Server::builder()
        .namespace(
            Namespace::new("/")
                .on("join", async |s: Socket, r: String| s.join(r))
                .on("cast", async |s: Socket, (r, t): (String, String)| {
                    s.namespace().in_(r).emit("cast", t).await
                }),
        )
        .build()
        .await
        .unwrap();
    let l = tokio::net::TcpListener::bind("127.0.0.1:4555")
        .await
        .unwrap();
    let io2 = io.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(std::time::Duration::from_secs(2));
            let n = io2.connections() as i64;
            if n == 0 {
                continue;
            }
            println!(
                "--- {n} connections, big {} per conn",
                BIG.load(Relaxed) / n
            );
            let mut tot = 0;
            for (size, c) in LIVE.iter().enumerate() {
                let c = c.load(Relaxed);
                tot += c * size as i64;
                if c * 10 >= n && n > 1000 {
                    println!(
                        "{size:5} x {:.2} = {}",
                        c as f64 / n as f64,
                        c * size as i64 / n
                    );
                }
            }
            println!("total small per conn {}", tot / n);
        }
    });
    io.serve(l, io.router()).await.unwrap();
}
