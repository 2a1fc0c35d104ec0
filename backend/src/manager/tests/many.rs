// SPDX-License-Identifier: GPL-2.0

//! A thousand workers: finding them, and what an event costs beside them.

use super::*;

/// Sockets of live workers, and a thread that answers for them; but for the ones from `silent` on.
fn crowd(run_dir: &Path, n: u16, silent: u16) -> thread::JoinHandle<()> {
    let listeners: Vec<_> = (1..=n)
        .map(|domid| {
            let dir = worker_dir(run_dir, id(domid));
            fs::create_dir_all(&dir).unwrap();
            let listener = UnixListener::bind(dir.join(WORKER_SOCKET)).unwrap();
            listener.set_nonblocking(true).unwrap();
            (id(domid), listener)
        })
        .collect();
    let events = EventLoop::new().unwrap();
    for (id, listener) in &listeners {
        events.add(Token::Process(*id), listener).unwrap();
    }
    thread::spawn(move || {
        let mut clients = BTreeMap::new();
        let mut bytes = [0; 100];
        while clients.len() < usize::from(n) || !clients.is_empty() {
            let soon = Instant::now() + Duration::from_secs(30);
            for token in events.wait(Some(soon)).unwrap() {
                match token {
                    Token::Process(id) => {
                        let listener = &listeners[usize::from(id.domid) - 1].1;
                        let (client, _) = listener.accept().unwrap();
                        events.add(Token::Connection(id), &client).unwrap();
                        clients.insert(id, client);
                    }
                    Token::Connection(id) => {
                        let mut client = &clients[&id];
                        match client.read(&mut bytes) {
                            Ok(0) | Err(_) => drop(clients.remove(&id)),
                            Ok(_) if id.domid >= silent => (),
                            Ok(_) => client
                                .write_all(b"{\"state\":\"connected\",\"commands\":1}\n")
                                .unwrap(),
                        }
                        if clients.is_empty() {
                            return;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    })
}

#[test]
fn a_thousand_live_workers() {
    const N: u16 = 1000;
    raise_file_limit();
    let mut f = Fixture::new();
    f.manager = None;
    let run_dir = f.dir.path().join("run");
    let crowd = crowd(&run_dir, N, N - 1);

    let start = Instant::now();
    f.replace();
    for domid in 1..=N {
        f.tell(domid, true);
        // The channel is bounded: the manager takes as the thread tells.
        if domid % 500 == 0 {
            f.manager().turn().unwrap();
        }
    }
    f.source.tell(Message::Scanned);
    f.until("scanned", |f| f.manager().ready);
    let found = start.elapsed();
    assert!(found < Duration::from_secs(2), "{found:?}");
    assert_eq!(f.manager().totals.worker_starts, 0);
    let connected = f.manager().workers.values();
    assert_eq!(
        connected.filter(|w| w.connection.is_some()).count(),
        usize::from(N)
    );

    // Two of them do not respond: they hold up nobody for longer than the timeout.
    let start = Instant::now();
    let report = f.report();
    let asked = start.elapsed();
    assert!(
        asked < RESPONSE_TIMEOUT + Duration::from_secs(2),
        "{asked:?}"
    );
    let of = |state: &str| report.vtpms.iter().filter(|v| v.state == state).count();
    assert_eq!(
        (of("connected"), of("does not respond")),
        (usize::from(N) - 2, 2)
    );
    eprintln!("1000 workers: found in {found:?}, status in {asked:?}");
    // They are no processes: the manager goes, not they.
    f.manager = None;
    crowd.join().unwrap();
}

/// What an event costs the manager, in a process with that many vTPMs.
fn cost(n: u16) -> Duration {
    let mut f = Fixture::new();
    let now = Instant::now();
    for domid in 1..=n {
        let mut worker = Worker::new(now);
        // As good as alive, and of no more cost than that.
        let (stream, _) = UnixStream::pair().unwrap();
        worker.needed = true;
        worker.connection = Some(Connection {
            stream,
            input: Vec::new(),
        });
        f.manager().workers.insert(id(domid), worker);
    }
    f.source.tell(Message::Scanned);
    f.manager().turn().unwrap();
    // This thread's: whatever else runs on this host is not in it.
    let used = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let start = used();
    for i in 0..2000 {
        f.tell(1 + i * 7 % n, true);
        f.manager().turn().unwrap();
    }
    let cost = used() - start;
    f.manager = None;
    cost
}

#[test]
fn an_event_costs_the_same_with_a_thousand() {
    raise_file_limit();
    // The fastest of several: whatever else runs on this machine only makes it slower.
    let fastest = |n| (0..5).map(|_| cost(n)).min().unwrap();
    let (one, thousand) = (fastest(1), fastest(1000));
    let ratio = thousand.as_secs_f64() / one.as_secs_f64();
    eprintln!(
        "an event: {:?} with 1 vTPM, {:?} with 1000: {ratio:.3}",
        one / 2000,
        thousand / 2000
    );
    // What grew with their number would be a hundred times as much.
    assert!(ratio < 2.0, "{ratio}");
}
