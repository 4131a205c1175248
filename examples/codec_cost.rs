//! Prints what one signal costs to decode and to encode: the best of many short rounds on one thread,
//! so that neighbours on the machine do not count.
//! `cargo run --release --example codec_cost`

use std::hint::black_box;
use std::time::Instant;

use casestream::domain::Timestamp;
use casestream::domain::signal::{Destination, RawPosition, Resource, Signal};
use casestream::topology::Topic;
use casestream::wire::avro::{Decoder, Encoder, Schemas};

const ROUNDS: u32 = 300;
const CALLS: u32 = 2_000;

fn signal() -> Signal<'static> {
    Signal {
        signal_id: "9c1f7a52-3f0e-4c76".into(),
        user_key: "u7q2m5kx3n4t6w8y2b5d7f9h3k".into(),
        source: "purview-dlp".into(),
        source_event_id: "9c1f7a52-3f0e-4c76-9d70-4f5d1c9a2b11".into(),
        op: "create".into(),
        indicator: "usb_copy".into(),
        occurred_at: Timestamp(1_795_500_000_000),
        ingested_at: Timestamp(1_795_500_001_250),
        day: "2026-11-24".into(),
        outcome: "audited".into(),
        count: 3,
        bytes: Some(48_210),
        labels: vec!["confidential".into()],
        destination: Some(Destination {
            kind: "device".into(),
            value: "usb-4411".into(),
            direction: "external".into(),
        }),
        resources: vec![Resource { id: "f-1".into(), kind: "file".into(), ..Resource::default() }],
        resources_total: 1,
        is_complete: true,
        device_id: Some("lap-0142".into()),
        raw: Some(RawPosition { topic: "raw.purview".into(), partition: 3, offset: 918_221 }),
        mapping: "purview@4f0a91".into(),
        origin: "live".into(),
        ..Signal::default()
    }
}

fn best_ns(mut call: impl FnMut()) -> u128 {
    let round = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        start.elapsed().as_nanos() / u128::from(CALLS)
    };
    (0..ROUNDS).map(|_| round(&mut call)).min().expect("at least one round")
}

fn main() {
    let schemas = Schemas::built_in();
    let (mut encoder, mut decoder) = (Encoder::new(&schemas), Decoder::new(&schemas));
    let (signal, mut bytes) = (signal(), Vec::new());
    encoder.encode(Topic::RiskSignals, &signal, &mut bytes).expect("the sample fits its schema");
    let decode = best_ns(|| {
        black_box(decoder.decode::<Signal<'_>>(Topic::RiskSignals, black_box(&bytes), &[]).expect("it decodes"));
    });
    let mut out = Vec::new();
    let encode = best_ns(|| {
        out.clear();
        encoder.encode(Topic::RiskSignals, black_box(&signal), &mut out).expect("it encodes");
        black_box(&out);
    });
    println!("risk-signals, {} bytes: decode {decode} ns, encode {encode} ns", bytes.len());
}
