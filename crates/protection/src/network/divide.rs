//! The appliance's limit, divided among the jobs that send.
//!
//! Replication first: what jobs that replicate can use they get before any job that mirrors; among equals everybody gets the same, but nobody more than it
//! can use or may have. Everybody keeps a small part, so that no job stands still and what it can use can be seen. What nobody asks for is
//! handed out as well, to those that replicate before others, so that a burst need not wait for the next division.

use standin_model::BITS_PER_SECOND_MIN;

/// One job's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The job's own limit in bits a second.
    pub limit: Option<u64>,
    /// What it would send now in bits a second; `None` for as much as it may.
    pub demand: Option<u64>,
    /// Its replica is consistent: what waits is what the server writes.
    pub replicates: bool,
}

/// A part in so many of the limit is divided among all before anything else.
const KEPT_PART: u64 = 20;

/// Bits a second for each claim, `None` for no limit. Together never more than `limit`, unless so many jobs send that each gets the least there can be.
pub fn divide(limit: Option<u64>, claims: &[Claim]) -> Vec<Option<u64>> {
    let Some(limit) = limit else { return claims.iter().map(|claim| claim.limit).collect() };
    let count = claims.len() as u64;
    if count == 0 {
        return Vec::new();
    }
    let most = |claim: &Claim| claim.limit.unwrap_or(u64::MAX);
    let kept = (limit / KEPT_PART / count).max(BITS_PER_SECOND_MIN).min((limit / count).max(BITS_PER_SECOND_MIN));
    let mut shares: Vec<u64> = claims.iter().map(|claim| kept.min(most(claim))).collect();
    let mut left = limit.saturating_sub(shares.iter().sum());
    for (up_to_demand, replicates) in [(true, true), (true, false), (false, true), (false, false)] {
        let wanted = |claim: &Claim| if up_to_demand { claim.demand.unwrap_or(u64::MAX).min(most(claim)) } else { most(claim) };
        let of_kind: Vec<usize> = (0..claims.len()).filter(|index| claims[*index].replicates == replicates).collect();
        fill(&mut shares, &mut left, &of_kind, |index| wanted(&claims[index]));
    }
    shares.into_iter().map(Some).collect()
}

/// Raises the lowest shares together, until nothing is left or everybody has what it wants.
fn fill(shares: &mut [u64], left: &mut u64, of_kind: &[usize], wanted: impl Fn(usize) -> u64) {
    let mut open: Vec<usize> = of_kind.iter().copied().filter(|index| shares[*index] < wanted(*index)).collect();
    // Every round ends the wish of one at least, or the rest.
    while !open.is_empty() && *left >= open.len() as u64 {
        let part = *left / open.len() as u64;
        let smallest = open.iter().map(|index| wanted(*index) - shares[*index]).min().unwrap_or(0).min(part);
        for index in &open {
            shares[*index] += smallest;
            *left -= smallest;
        }
        open.retain(|index| shares[*index] < wanted(*index));
        if smallest == part {
            break;
        }
    }
}
