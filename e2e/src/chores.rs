//! What a server does beside its databases: containers' layers and packages, as units of the guest that run until it ends. Their pauses leave an emulated
//! machine time for the rest.
//!
//! - *Layers*: an overlay on folders of the root volume, and churn in it: copies up, whiteouts, opaque directories. On the volume these are what the overlay
//!   makes of them.
//! - *Packages*: real `apt` and `dpkg` install, upgrade, downgrade and purge the packages of the image's own repository, round after round.

use anyhow::{Context, Result};

use crate::lab::{Guest, repository};

/// Operations a second in the overlay; each costs several below it.
const RATE: u32 = 6;

const UNITS: [&str; 2] = ["chore-layers", "chore-packages"];
const LAYERS: &str = "/srv/layers";
/// The rounds that the packages have come to.
const ROUNDS: &str = "/srv/rounds";

/// Starts both, also where an earlier start was ended by a power cut. `program` is the guest's `standin-e2e`.
pub fn start(guest: &mut Guest, program: &str, seed: u64) -> Result<()> {
    let layers = format!("FOLDER={LAYERS}; PROGRAM='{program} churn {LAYERS}/merged --seed {seed} --rate {RATE}'\n{LAYERS_SCRIPT}");
    let packages = format!(
        "CURRENT={} LIST={} RELEASES={} PACKAGES='{}' ROUNDS={ROUNDS}\n{PACKAGES_SCRIPT}",
        repository::CURRENT,
        repository::LIST,
        repository::RELEASES,
        repository::PACKAGES.join(" ")
    );
    for (unit, script) in UNITS.iter().zip([layers, packages]) {
        let make = format!("mkdir -p /srv/chores; cat > /srv/chores/{unit} <<'END-OF-CHORE'\nset -eu\n{script}\nEND-OF-CHORE");
        let run = format!("systemctl reset-failed {unit} 2>/dev/null; systemd-run --quiet --unit {unit} sh /srv/chores/{unit}");
        guest.ssh(&format!("{make}\n{run}")).with_context(|| format!("starting {unit}"))?;
    }
    Ok(())
}

/// Both still run.
pub fn ensure(guest: &mut Guest) -> Result<()> {
    for unit in UNITS {
        guest.ssh(&format!("systemctl is-active --quiet {unit} || {{ journalctl -n 8 --no-pager -u {unit} >&2; exit 1; }}"))?;
    }
    Ok(())
}

/// Rounds of packages so far.
pub fn rounds(guest: &mut Guest) -> Result<u64> {
    let said = guest.ssh(&format!("cat {ROUNDS} 2>/dev/null || echo 0"))?;
    said.trim().parse().with_context(|| format!("odd rounds {said:?}"))
}

const LAYERS_SCRIPT: &str = r#"
mkdir -p $FOLDER/lower $FOLDER/upper $FOLDER/work $FOLDER/merged; cd $FOLDER
if [ ! -e lower/ready ]; then
    for folder in 0 1 2 3 4 5 6 7; do
        mkdir -p lower/d$folder
        for name in $(seq 0 2 23); do head -c $((1000 + name * 4001)) /dev/urandom > lower/d$folder/n$name; done
        mkdir -p lower/d$folder/n1; echo below > lower/d$folder/n1/deep; ln -sf n0 lower/d$folder/n3
    done
    touch lower/ready
fi
mountpoint -q merged || mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
exec $PROGRAM
"#;

const PACKAGES_SCRIPT: &str = r#"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
apt() { apt-get -y -q -o Dir::Etc::sourcelist=$LIST -o Dir::Etc::sourceparts=- -o Dpkg::Options::=--force-confnew -o APT::Sandbox::User=root "$@"; }
release() { ln -sfn $1 $CURRENT; apt update; }
# What a power cut has left half done.
dpkg --configure -a --force-confnew
release $RELEASES; apt -f install
rounds=$(cat $ROUNDS 2>/dev/null || echo 0)
while :; do
    release 1; apt --allow-downgrades install $(for name in $PACKAGES; do echo $name=1; done)
    for number in $(seq 2 $RELEASES); do sleep 10; release $number; apt upgrade; done
    apt remove lab-two; sleep 10; apt purge $PACKAGES; sleep 10
    rounds=$((rounds + 1)); echo $rounds > $ROUNDS
done
"#;
