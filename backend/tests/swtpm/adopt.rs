// SPDX-License-Identifier: GPL-2.0

//! A worker that ends, and the next one that goes on with its swtpm.

use std::time::Duration;

use xen_vtpmd::swtpm::Version;

use crate::bench::{extend_2, kill, pcr_2, Bench, GET_RANDOM};

#[test]
fn the_next_worker_goes_on() {
    for version in Version::ALL {
        let Some(bench) = Bench::with_tpm(version) else {
            return;
        };
        let mut swtpm = bench.start();
        let mut extended = None;
        if version == Version::Tpm2 {
            swtpm.done(&extend_2(16));
            extended = Some(pcr_2(&mut swtpm, 16));
        }
        let pid = swtpm.id();
        for _ in 0..5 {
            drop(swtpm);
            swtpm = bench.adopt().unwrap();
            assert_eq!(swtpm.id(), pid);
            if let Some(extended) = &extended {
                assert_eq!(&pcr_2(&mut swtpm, 16), extended);
            }
        }
        swtpm.end();
        assert!(bench.record().is_none() && bench.adopt().is_none());
    }
}

#[test]
fn a_response_that_nobody_received_is_not_the_next_ones() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();
    for _ in 0..20 {
        // Sent, and gone before there is a response.
        let fd = swtpm.tpm.data().try_clone_to_owned().unwrap();
        rustix::io::write(&fd, &extend_2(16)).unwrap();
        drop(fd);
        drop(swtpm);
        swtpm = bench.adopt().unwrap();
        assert_eq!(swtpm.done(&GET_RANDOM).len(), 20);
    }
    swtpm.end();
}

#[test]
fn what_is_gone_is_not_adopted() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let swtpm = bench.start();
    let record = bench.record().unwrap();
    assert_eq!(record.pid.unsigned_abs(), swtpm.id());
    kill(swtpm.id());
    drop(swtpm);
    std::thread::sleep(Duration::from_millis(100));
    assert!(bench.adopt().is_none());
    bench.start().end();
}
