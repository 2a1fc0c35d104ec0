// SPDX-License-Identifier: GPL-2.0

use std::thread;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    events: EventLoop,
    server: Server,
}

fn fixture() -> Fixture {
    let (dir, events) = (tempfile::tempdir().unwrap(), EventLoop::new().unwrap());
    let server = Server::open(dir.path(), None, &events).unwrap();
    Fixture {
        dir,
        events,
        server,
    }
}

impl Fixture {
    /// Lets the server work until there is a request or nothing to do for a while.
    fn turn(&mut self) -> Option<(u32, Request)> {
        loop {
            let soon = Some(Instant::now() + Duration::from_millis(200));
            let ready = self.events.wait(soon).unwrap();
            if ready.is_empty() {
                return None;
            }
            for token in ready {
                match token {
                    Token::Listener => self.server.on_listener(&self.events),
                    Token::Client(number) => {
                        if let Some(request) = self.server.on_client(&self.events, number) {
                            return Some((number, request));
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join(SOCKET)).unwrap()
    }
}

#[test]
fn a_response_of_any_size() {
    let mut f = fixture();
    let path = f.dir.path().to_owned();
    let mode = fs::metadata(path.join(SOCKET))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    for size in [1, 3_000_000] {
        let path = path.clone();
        let client = thread::spawn(move || ask(&path, Request::Status).unwrap());
        let (number, request) = f.turn().unwrap();
        assert_eq!(request, Request::Status);
        f.server.respond(&f.events, number, &"x".repeat(size));
        assert_eq!(f.turn(), None);
        assert_eq!(client.join().unwrap().len(), size + 2);
    }
    assert!(f.server.clients.is_empty());
}

#[test]
fn slow_and_silent_clients_hold_up_nobody() {
    let mut f = fixture();
    // More than there is room for, of one user: the last ones are turned away.
    let silent: Vec<_> = (0..MAX_CLIENTS_OF_USER + 5).map(|_| f.connect()).collect();
    let mut slow = f.connect();
    slow.write_all(b"{\"request\":").unwrap_or_default();
    assert_eq!(f.turn(), None);
    assert_eq!(f.server.clients.len(), MAX_CLIENTS_OF_USER);

    let deadline = f.server.deadline().unwrap();
    assert!(deadline <= Instant::now() + CLIENT_TIMEOUT);
    f.server.on_deadline(&f.events, deadline + CLIENT_TIMEOUT);
    assert!(f.server.clients.is_empty());
    drop(silent);

    // One that does not read its response is in nobody's way.
    let mut lazy = f.connect();
    lazy.write_all(b"{\"request\":\"status\"}\n").unwrap();
    let (number, _) = f.turn().unwrap();
    f.server.respond(&f.events, number, &"x".repeat(3_000_000));
    let path = f.dir.path().to_owned();
    let client = thread::spawn(move || ask(&path, Request::Stop));
    let (number, request) = f.turn().unwrap();
    assert_eq!(request, Request::Stop);
    f.server.respond(&f.events, number, &true);
    assert_eq!(client.join().unwrap().unwrap(), "true");
    let deadline = f.server.deadline().unwrap();
    f.server.on_deadline(&f.events, deadline);
    assert!(f.server.clients.is_empty());
}

#[test]
fn a_group_may_read_the_status_and_no_more() {
    const GID: u32 = 54_321;
    let (dir, events) = (tempfile::tempdir().unwrap(), EventLoop::new().unwrap());
    let Ok(server) = Server::open(dir.path(), Some(GID), &events) else {
        return eprintln!("SKIPPED: not root");
    };
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    let mut f = Fixture {
        dir,
        events,
        server,
    };
    let path = f.dir.path().join(SOCKET);
    // As another user, of that group or of none.
    let ask = |gid: u32, request: &str| {
        let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); \
            s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode() + b'\\n'); \
            print(s.makefile().readline())";
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid=54322", &format!("--regid={gid}"), "--clear-groups"])
            .args(["python3", "-c", script])
            .arg(&path)
            .arg(format!("{{\"request\":\"{request}\"}}"))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let until = |f: &mut Fixture, mut child: std::process::Child| loop {
        if let Some((number, request)) = f.turn() {
            f.server.respond(&f.events, number, &format!("{request:?}"));
        }
        if child.try_wait().unwrap().is_some() {
            let output = child.wait_with_output().unwrap();
            return String::from_utf8(output.stdout).unwrap();
        }
    };

    let child = ask(GID, "status");
    assert!(until(&mut f, child).contains("Status"));
    let child = ask(GID, "stop");
    assert!(until(&mut f, child).contains("only root may ask"));
    let child = ask(GID + 1, "status");
    assert_eq!(until(&mut f, child), "");
}

#[test]
fn nonsense_ends_the_conversation() {
    let mut f = fixture();
    let mut response = String::new();

    let mut client = f.connect();
    client.write_all(b"{\"request\":\"fly\"}\n").unwrap();
    assert_eq!(f.turn(), None);
    client.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("{\"error\":"), "{response}");

    client = f.connect();
    client.write_all(&[b'x'; MAX_REQUEST]).unwrap();
    assert_eq!(f.turn(), None);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);

    // A client that goes away while it is owed a response.
    client = f.connect();
    client.write_all(b"{\"request\":\"status\"}\n").unwrap();
    let (number, _) = f.turn().unwrap();
    drop(client);
    assert_eq!(f.turn(), None);
    f.server.respond(&f.events, number, &1);
    assert!(f.server.clients.is_empty());
}

#[test]
fn no_manager() {
    let dir = tempfile::tempdir().unwrap();
    let response = || ask(dir.path(), Request::Status);
    assert!(matches!(response(), Err(Error::NoManager(_))));
    // What a manager leaves that was killed.
    drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
    assert!(matches!(response(), Err(Error::NoManager(_))));
}
