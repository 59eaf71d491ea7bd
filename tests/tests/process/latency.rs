//! How fast.

use divider_tests::history::quantile;

use super::{Bed, figure};
use crate::backend::TestBackend;

const ADDS: usize = 1000;

pub(crate) fn a_key_is_started_within_milliseconds_of_its_add<B: TestBackend>() {
    let mut bed = Bed::<B>::new(&[]);
    let ids = bed.nodes(5, &[]);
    let mut times = bed.time_adds(&ids, ADDS);
    figure(&format!("{}: add to start, 5 nodes", B::NAME), &mut times);
    for (quantile_of, bound) in [(0.5, B::LATENCY.0), (0.99, B::LATENCY.1)] {
        let bound = bed.fleet.allowing(bound);
        let took = quantile(&mut times, quantile_of);
        assert!(took <= bound, "{quantile_of} of the starts took up to {took:?}, and may take {bound:?}");
    }
}
