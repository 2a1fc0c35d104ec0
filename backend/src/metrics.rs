// SPDX-License-Identifier: GPL-2.0

//! The status as metrics in Prometheus' text format, for the textfile collector of its node_exporter: there is no
//! server here.

use std::fmt::Write as _;

use crate::status::{Report, Vtpm};

/// A metric that each vTPM has: name, type, what it is, and its value.
type PerVtpm = (&'static str, &'static str, &'static str, fn(&Vtpm) -> f64);

const PER_VTPM: [PerVtpm; 9] = [
    (
        "xen_vtpm_connected",
        "gauge",
        "Whether the vTPM is connected to its guest.",
        |v| f64::from(u8::from(v.state == "connected")),
    ),
    (
        "xen_vtpm_commands_total",
        "counter",
        "Commands that were taken.",
        |v| v.commands as f64,
    ),
    (
        "xen_vtpm_cancels_total",
        "counter",
        "Commands that the guest cancelled.",
        |v| v.cancels as f64,
    ),
    (
        "xen_vtpm_refused_total",
        "counter",
        "Requests that were turned down.",
        |v| v.refused as f64,
    ),
    (
        "xen_vtpm_reconnects_total",
        "counter",
        "Connections to the guest after the first.",
        |v| v.reconnects as f64,
    ),
    (
        "xen_vtpm_received_bytes_total",
        "counter",
        "Bytes of commands.",
        |v| v.bytes_in as f64,
    ),
    (
        "xen_vtpm_sent_bytes_total",
        "counter",
        "Bytes of responses.",
        |v| v.bytes_out as f64,
    ),
    (
        "xen_vtpm_tpm_deaths_total",
        "counter",
        "TPMs that ended although they should not.",
        |v| v.deaths as f64,
    ),
    (
        "xen_vtpm_worker_restarts_total",
        "counter",
        "Workers that ended although they should not.",
        |v| v.worker_restarts as f64,
    ),
];

/// The text.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    let totals = &report.totals;
    for (name, kind, help, value) in [
        (
            "xen_vtpmd_vtpms",
            "gauge",
            "vTPMs that have a worker or need one.",
            report.vtpms.len() as f64,
        ),
        (
            "xen_vtpmd_worker_starts_total",
            "counter",
            "Workers that were started.",
            totals.worker_starts as f64,
        ),
        (
            "xen_vtpmd_worker_restarts_total",
            "counter",
            "Workers that ended although they should not.",
            totals.worker_restarts as f64,
        ),
        (
            "xen_vtpmd_tpm_starts_total",
            "counter",
            "TPMs that came up.",
            totals.starts as f64,
        ),
        (
            "xen_vtpmd_tpm_start_failures_total",
            "counter",
            "TPMs that did not come up.",
            totals.failures as f64,
        ),
        (
            "xen_vtpmd_tpm_start_seconds_total",
            "counter",
            "How long the starts of TPMs took, all together.",
            totals.start_us as f64 / 1e6,
        ),
        (
            "xen_vtpmd_restores_total",
            "counter",
            "TPMs that went on where they stopped when their guests were saved.",
            totals.restores as f64,
        ),
        (
            "xen_vtpmd_tpms_unmeasured_total",
            "counter",
            "TPMs whose guests were to be measured, and were not.",
            totals.unmeasured as f64,
        ),
        (
            "xen_vtpmd_kernels_not_allowed_total",
            "counter",
            "TPMs whose guests boot a kernel that is not allowed.",
            totals.not_allowed as f64,
        ),
        (
            "xen_vtpmd_saves_total",
            "counter",
            "TPMs that were saved with their guests.",
            totals.saves as f64,
        ),
        (
            "xen_vtpmd_tpms_lost_total",
            "counter",
            "TPMs that ended under a running guest.",
            totals.lost as f64,
        ),
        (
            "xen_vtpmd_connections_refused_total",
            "counter",
            "Connections that were turned down.",
            totals.refused as f64,
        ),
        (
            "xen_vtpmd_cpu_seconds_total",
            "counter",
            "CPU time of the manager.",
            report.used_us / 1e6,
        ),
    ] {
        head(&mut text, name, kind, help);
        line(&mut text, name, "", value);
    }
    for (name, kind, help, value) in PER_VTPM {
        head(&mut text, name, kind, help);
        for vtpm in &report.vtpms {
            line(&mut text, name, &labels(vtpm), value(vtpm));
        }
    }
    latency(&mut text, &report.vtpms);
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing into memory does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: f64) {
    let _ = match labels {
        "" => writeln!(text, "{name} {value}"),
        _ => writeln!(text, "{name}{{{labels}}} {value}"),
    };
}

fn labels(vtpm: &Vtpm) -> String {
    // A uuid comes from a worker, which has checked it; and nothing else than a uuid has its characters.
    let uuid: String = vtpm
        .uuid
        .as_deref()
        .unwrap_or("")
        .chars()
        .take(36)
        .collect();
    let uuid: String = uuid
        .chars()
        .filter(|c| c.is_ascii_hexdigit() || *c == '-')
        .collect();
    format!(
        "domid=\"{}\",devid=\"{}\",uuid=\"{uuid}\"",
        vtpm.domid, vtpm.devid
    )
}

/// How long commands took: one of 16 is timed. Prometheus' buckets have all that took no longer.
fn latency(text: &mut String, vtpms: &[Vtpm]) {
    const NAME: &str = "xen_vtpm_command_seconds";
    let help = "Time from the guest's event to its response, of one command in 16.";

    head(text, NAME, "histogram", help);
    for vtpm in vtpms {
        let labels = labels(vtpm);
        let mut below = 0;
        for (n, count) in vtpm.latency.iter().enumerate() {
            below += count;
            // The bucket n has those that took less than 2^n microseconds; the last one has no bound.
            if n + 1 < 32 {
                let bound = (1u64 << n) as f64 / 1e6;
                let _ = writeln!(text, "{NAME}_bucket{{{labels},le=\"{bound}\"}} {below}");
            }
        }
        let _ = writeln!(text, "{NAME}_bucket{{{labels},le=\"+Inf\"}} {below}");
        line(text, &format!("{NAME}_sum"), &labels, vtpm.timed_us / 1e6);
        line(text, &format!("{NAME}_count"), &labels, below as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Event;

    #[test]
    fn metrics_of_a_report() {
        let mut report = Report {
            vtpms: vec![Vtpm {
                domid: 7,
                state: "connected".into(),
                uuid: Some("0f8fad5b-d9cb-469f-a165-70867728950e\"x".into()),
                commands: 64,
                latency: vec![0, 1, 0, 2],
                timed_us: 20.0,
                ..Vtpm::default()
            }],
            ..Report::default()
        };
        report.totals.count(&Event::Started {
            uuid: "u".into(),
            us: 250_000,
            restored: true,
        });
        report.totals.count(&Event::Saved { uuid: "u".into() });
        let text = text(&report);
        let labels = "domid=\"7\",devid=\"0\",uuid=\"0f8fad5b-d9cb-469f-a165-70867728950e\"";
        for wanted in [
            "xen_vtpmd_vtpms 1\n".to_owned(),
            "xen_vtpmd_tpm_starts_total 1\n".to_owned(),
            "xen_vtpmd_tpm_start_seconds_total 0.25\n".to_owned(),
            "xen_vtpmd_restores_total 1\n".to_owned(),
            "xen_vtpmd_saves_total 1\n".to_owned(),
            format!("xen_vtpm_connected{{{labels}}} 1\n"),
            format!("xen_vtpm_commands_total{{{labels}}} 64\n"),
            // Cumulative: two of three took longer than four microseconds.
            format!("xen_vtpm_command_seconds_bucket{{{labels},le=\"0.000001\"}} 0\n"),
            format!("xen_vtpm_command_seconds_bucket{{{labels},le=\"0.000002\"}} 1\n"),
            format!("xen_vtpm_command_seconds_bucket{{{labels},le=\"0.000004\"}} 1\n"),
            format!("xen_vtpm_command_seconds_bucket{{{labels},le=\"0.000008\"}} 3\n"),
            format!("xen_vtpm_command_seconds_bucket{{{labels},le=\"+Inf\"}} 3\n"),
            format!("xen_vtpm_command_seconds_sum{{{labels}}} 0.00002\n"),
            format!("xen_vtpm_command_seconds_count{{{labels}}} 3\n"),
        ] {
            assert!(text.contains(&wanted), "no {wanted}in:\n{text}");
        }
        // Each metric has its type said once, before its first value.
        let mut seen = std::collections::HashSet::new();
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            assert!(seen.insert(line.split(' ').nth(2)), "{line}");
        }
    }
}
