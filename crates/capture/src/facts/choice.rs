//! Which program goes onto which function of this kernel, and what is to be said about it.
//!
//! A hook has several forms where kernels differ. One of them has to be exactly what the kernel declares; the comparison is of prototypes as text.

use super::Facts;
use crate::{
    CaptureError,
    hooks::{Attach, HOOKS, Hook, Only},
};
use standin_model::FileSystem;
use std::fmt;

/// What a kernel offers for one file system.
#[derive(Debug)]
pub struct Offer {
    pub file_system: FileSystem,
    /// Function, and the program that goes onto it: which one tells which form of the function this kernel has.
    pub hooks: Vec<(&'static str, &'static str)>,
    /// Functions that are needed, and why this kernel's will not do.
    pub missing: Vec<(&'static str, CaptureError)>,
    /// With every hook there: what else the programs take for granted and this kernel does not have, the first of it.
    pub obstacle: Option<CaptureError>,
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} of {} hooks", self.file_system.as_str(), self.hooks.len(), self.hooks.len() + self.missing.len())?;
        self.missing.iter().map(|(_, reason)| reason).chain(&self.obstacle).try_for_each(|reason| write!(f, "; {reason}"))
    }
}

/// What the running kernel offers for each of these file systems, whose modules must be loaded.
pub fn offers(wanted: &[FileSystem]) -> Result<Vec<Offer>, CaptureError> {
    let facts = Facts::of_kernel(wanted)?;
    Ok(wanted.iter().map(|kind| facts.offer(*kind)).collect())
}

impl Facts {
    /// The hooks for these file systems, each with the program for what this kernel declares, in the order in which they are to be attached.
    pub fn hooks(&self, protected: &[FileSystem]) -> Result<Vec<&'static Hook>, CaptureError> {
        self.choices(protected).into_iter().map(|(_, choice)| choice).collect()
    }

    /// Every hook one by one, so that all that is missing is told and not only the first of it.
    pub fn offer(&self, file_system: FileSystem) -> Offer {
        let mut offer = Offer { file_system, hooks: Vec::new(), missing: Vec::new(), obstacle: None };
        for (function, choice) in self.choices(&[file_system]) {
            match choice {
                Ok(hook) => offer.hooks.push((function, hook.program)),
                Err(reason) => offer.missing.push((function, reason)),
            }
        }
        if offer.missing.is_empty() {
            offer.obstacle = self.check(&[file_system]).err();
        }
        offer
    }

    /// For each function, and each of its ends, the form that fits or why none does.
    fn choices(&self, protected: &[FileSystem]) -> Vec<(&'static str, Result<&'static Hook, CaptureError>)> {
        let wanted: Vec<&Hook> = HOOKS.iter().filter(|hook| hook.is_needed(protected) && self.does(hook.only)).collect();
        let mut chosen: Vec<(&str, Attach, Result<&Hook, CaptureError>)> = Vec::new();
        for hook in &wanted {
            if chosen.iter().any(|(function, attach, _)| (*function, *attach) == (hook.function, hook.attach)) {
                continue;
            }
            let forms: Vec<&Hook> =
                wanted.iter().filter(|form| (form.function, form.attach) == (hook.function, hook.attach)).copied().collect();
            chosen.push((hook.function, hook.attach, self.choose(hook.function, &forms)));
        }
        chosen.into_iter().map(|(function, _, choice)| (function, choice)).collect()
    }

    fn choose(&self, function: &'static str, forms: &[&'static Hook]) -> Result<&'static Hook, CaptureError> {
        let Some(found) = self.declared(function) else {
            let file_system = forms.iter().flat_map(|form| form.file_systems).next().map_or("any file system", |kind| kind.as_str());
            return Err(CaptureError::Unsupported { file_system, reason: format!("it has no function {function}") });
        };
        let mut fitting = forms.iter().filter(|form| form.prototypes.contains(&found)).peekable();
        if fitting.peek().is_none() {
            let known = forms.iter().flat_map(|form| form.prototypes).map(|known| format!("({known})")).collect::<Vec<_>>().join(" or ");
            return Err(CaptureError::Prototype { hook: function, found: format!("({found})"), known });
        }
        let found = self.0.get(&format!("return {function}")).map_or("nothing", String::as_str);
        let known = fitting.clone().filter_map(|form| form.returns).collect::<Vec<_>>().join(" or ");
        let form = fitting.find(|form| form.returns.is_none_or(|known| known == found));
        form.copied().ok_or_else(|| CaptureError::Prototype { hook: function, found: format!("a result of type {found}"), known })
    }

    /// Whether the kernel does it in the way that a hook is about.
    pub(super) fn does(&self, only: Only) -> bool {
        match only {
            Only::Always => true,
            Only::With(function) => self.declared(function).is_some(),
            Only::Without(function) => self.declared(function).is_none(),
        }
    }
}
