//! Which of the two ways captures this server: the kernel's own functions (`ebpf`), or fanotify, whose promise is weaker.
//!
//! The weaker one is used only where the server's owner has allowed it (`standin-agent capture --driver`), and everybody who looks at the job is told.

use crate::settings::Driver;
use standin_capture::{CaptureConfig, CaptureError, CaptureSource, EbpfCapture, FanotifyCapture, fanotify_obstacle};
use standin_model::Inventory;

const CHOSEN: &str = "it was chosen on the source";

/// Starts capture as it is allowed.
pub fn start(config: &CaptureConfig, driver: Driver) -> Result<Box<dyn CaptureSource + Send>, CaptureError> {
    if driver == Driver::Fanotify {
        return Ok(Box::new(FanotifyCapture::start(config, CHOSEN)?));
    }
    let reason = match EbpfCapture::start(config) {
        Ok(capture) => return Ok(Box::new(capture)),
        Err(error) if !error.is_of_the_kernel() => return Err(error),
        Err(error) => error,
    };
    if driver == Driver::Auto {
        tracing::warn!(code = reason.code(), %reason, "this kernel cannot be captured operation by operation; fanotify takes its place");
        return Ok(Box::new(FanotifyCapture::start(config, &said(&reason))?));
    }
    Err(if fanotify_obstacle().is_none() { CaptureError::WeakerNotAllowed { reason: Box::new(reason) } } else { reason })
}

fn said(error: &CaptureError) -> String {
    format!("{}: {error}", error.code())
}

/// The inventory as the appliance is to see it: what stands in the way of one driver is no obstacle where the other may be used.
pub fn promised(mut inventory: Inventory, driver: Driver) -> Inventory {
    let obstacle = fanotify_obstacle();
    promise(&mut inventory, driver, obstacle.as_ref());
    inventory
}

fn promise(inventory: &mut Inventory, driver: Driver, fanotify: Option<&CaptureError>) {
    let of_volumes = inventory.volumes.iter_mut().map(|volume| &mut volume.capture_obstacle);
    let texts: Vec<&mut String> = inventory.capture_obstacles.iter_mut().chain(of_volumes.filter_map(Option::as_mut)).collect();
    let reason = match (driver, fanotify, texts.first()) {
        (Driver::Fanotify, Some(error), _) => {
            inventory.capture_obstacles = vec![said(error)];
            return;
        }
        (Driver::Fanotify, None, _) => CHOSEN.to_owned(),
        (Driver::Auto, None, Some(first)) => (**first).clone(),
        (Driver::Ebpf, None, Some(_)) => {
            for text in texts {
                text.push_str(" (STANDIN-E6009: a weaker promise can be allowed on the source: standin-agent capture --driver auto)");
            }
            return;
        }
        _ => return,
    };
    inventory.capture_obstacles.clear();
    inventory.volumes.iter_mut().for_each(|volume| volume.capture_obstacle = None);
    inventory.periodic = Some(reason);
}

/// Which driver a job would get, in a line for a person.
pub fn describe(inventory: &Inventory, driver: Driver) -> String {
    let promised = promised(inventory.clone(), driver);
    let obstacles = promised.volumes.iter().filter_map(|volume| volume.capture_obstacle.as_ref());
    let obstacle = promised.capture_obstacles.iter().chain(obstacles).next();
    let words = match (&promised.periodic, obstacle) {
        (Some(reason), _) => format!("fanotify (periodic consistency), because {reason}"),
        (None, Some(obstacle)) => format!("none for all volumes: {obstacle}"),
        (None, None) => "ebpf (every operation in its order)".to_owned(),
    };
    format!("driver {}: {words}", driver.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(obstacles: &[&str]) -> Inventory {
        let mut inventory = crate::inventory::read().unwrap();
        inventory.capture_obstacles = obstacles.iter().map(|text| (*text).to_owned()).collect();
        inventory.volumes.iter_mut().for_each(|volume| volume.capture_obstacle = None);
        inventory
    }

    fn promised(obstacles: &[&str], driver: Driver, fanotify: bool) -> Inventory {
        let mut inventory = inventory(obstacles);
        let obstacle = CaptureError::Fanotify { what: "anything".into(), cause: "no".into() };
        promise(&mut inventory, driver, Some(&obstacle).filter(|_| !fanotify));
        inventory
    }

    #[test]
    fn a_weaker_promise_is_made_only_where_it_is_allowed() {
        let told = |inventory: &Inventory| (inventory.periodic.clone(), inventory.capture_obstacles.len());
        for driver in [Driver::Ebpf, Driver::Auto] {
            assert_eq!(told(&promised(&[], driver, true)), (None, 0), "nothing stands in the way");
            assert_eq!(told(&promised(&["no BTF"], driver, false)), (None, 1), "and nothing takes its place");
        }
        let refused = promised(&["no BTF"], Driver::Ebpf, true);
        assert_eq!(refused.periodic, None);
        assert!(refused.capture_obstacles[0].contains("standin-agent capture --driver auto"), "{refused:?}");
        assert_eq!(told(&promised(&["no BTF", "lockdown"], Driver::Auto, true)), (Some("no BTF".into()), 0));
        assert_eq!(told(&promised(&[], Driver::Fanotify, true)), (Some(CHOSEN.into()), 0));
        let without = promised(&[], Driver::Fanotify, false);
        assert!(without.periodic.is_none() && without.capture_obstacles[0].starts_with("STANDIN-E6010"), "{without:?}");
    }

    #[test]
    fn an_obstacle_of_one_volume_counts() {
        let mut inventory = inventory(&[]);
        let Some(volume) = inventory.volumes.first_mut() else { return println!("skipped: no volume here") };
        volume.capture_obstacle = Some("STANDIN-E6006: another kernel".into());
        promise(&mut inventory, Driver::Auto, None);
        assert_eq!(inventory.periodic.as_deref(), Some("STANDIN-E6006: another kernel"));
        assert!(inventory.volumes.iter().all(|volume| volume.capture_obstacle.is_none()));
    }

    /// A configuration without volumes is refused as a kernel would be that cannot.
    #[test]
    fn a_kernel_that_cannot_is_refused_with_the_setting_as_the_next_command() {
        if fanotify_obstacle().is_some() {
            return println!("skipped: no fanotify here");
        }
        let config = CaptureConfig::new(Vec::new());
        let error = start(&config, Driver::Ebpf).err().unwrap();
        assert_eq!(error.code(), "STANDIN-E6009");
        assert!(error.to_string().contains("standin-agent capture --driver auto"), "{error}");
        // No volume is nothing to be refused for fanotify.
        let capture = start(&config, Driver::Auto).unwrap();
        assert!(capture.because().contains("STANDIN-E6006"), "{}", capture.because());
    }
}
