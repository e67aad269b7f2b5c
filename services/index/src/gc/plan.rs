//! What a run found and what became of it.

use std::collections::HashSet;

use e2llm_api::v1::object_outcome::Outcome;
use e2llm_api::v1::{Amount, GarbageCounts, GarbageProgress, GarbageReport, ObjectOutcome};
use e2llm_store::Store;
use e2llm_store::garbage::ObjectName;
use futures::{StreamExt, TryStreamExt};

use super::used::Used;
use super::{GarbageOptions, HeldTexts, Marks, OnProgress};
use crate::{IndexError, IndexService};

/// Objects between two reports of progress.
const TELL_EVERY: u64 = 20_000;

/// Objects looked up at the same time.
const PARALLEL: usize = 16;

/// By what objects are judged.
struct Judge {
    now: u64,
    /// In milliseconds.
    grace: u64,
}

/// An object of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) name: ObjectName,
    bytes: u64,
    /// Its place in [`GarbageOptions::only`].
    asked: Option<usize>,
}

/// What there is to do, and, as it is done, the report.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// To be deleted, unless held.
    pub(super) due: Vec<Found>,
    /// To be marked.
    fresh: Vec<Found>,
    marks: Marks,
    blobs: GarbageCounts,
    texts: GarbageCounts,
    /// By place in [`GarbageOptions::only`].
    outcomes: Vec<ObjectOutcome>,
    used: Used,
    pub(super) looked_at: u64,
    /// Due texts were kept because rows were being submitted.
    spared_texts: bool,
}

impl Plan {
    pub(super) async fn make(
        index: &IndexService,
        options: &GarbageOptions,
        now: u64,
        progress: &OnProgress,
    ) -> Result<Self, IndexError> {
        let store = index.log.store();
        let mut plan = Self { used: Used::read(index, &options.only).await?, ..Self::default() };
        let judge = Judge { now, grace: options.grace_ms() };
        if !options.only.is_empty() {
            plan.look_up(store, &options.only, &judge).await?;
            return Ok(plan);
        }
        plan.marks = Marks::read(store).await?;
        let mut listed = store.collectable();
        while let Some((name, object)) = listed.try_next().await? {
            let found = Found { name, bytes: object.bytes, asked: None };
            plan.judge(found, object.age_ms(now), &judge);
            plan.looked_at += 1;
            if plan.looked_at.is_multiple_of(TELL_EVERY) {
                progress(GarbageProgress { looked_at: plan.looked_at, ..Default::default() });
            }
        }
        Ok(plan)
    }

    async fn look_up(&mut self, store: &Store, only: &[ObjectName], judge: &Judge) -> Result<(), IndexError> {
        let absent = |name: &ObjectName| ObjectOutcome {
            name: name.to_string(),
            outcome: Outcome::Absent.into(),
            ..Default::default()
        };
        self.outcomes = only.iter().map(absent).collect();
        let paths: Vec<String> = only.iter().map(ObjectName::path).collect();
        let infos = futures::stream::iter(paths).map(|path| async move { store.info(&path).await });
        let infos: Vec<_> = infos.buffered(PARALLEL).try_collect().await?;
        let mut seen = HashSet::new();
        for ((place, name), info) in only.iter().enumerate().zip(infos) {
            let Some(object) = info.filter(|_| seen.insert(name)) else { continue };
            self.looked_at += 1;
            let found = Found { name: *name, bytes: object.bytes, asked: Some(place) };
            self.judge(found, object.age_ms(judge.now), judge);
        }
        Ok(())
    }

    fn judge(&mut self, found: Found, age: u64, judge: &Judge) {
        if self.used.contains(&found.name) {
            return self.settle(&found, Outcome::InUse);
        }
        if age < judge.grace {
            return self.settle(&found, Outcome::Young);
        }
        match self.marks.since(&found.name) {
            _ if judge.grace == 0 || found.asked.is_some() => self.due.push(found),
            Some(since) if judge.now.saturating_sub(since) >= judge.grace => self.due.push(found),
            Some(_) => {
                self.marks.stays(&found.name);
                add(&mut self.counts(&found.name).waiting, found.bytes);
            }
            None => self.fresh.push(found),
        }
    }

    /// Whether something holds a due object; then it stays marked.
    pub(super) fn spare(&mut self, found: &Found, held: &HeldTexts) -> bool {
        let Some(outcome) = held.outcome(&found.name) else { return false };
        self.settle(found, outcome);
        self.spared_texts |= outcome == Outcome::Submitting;
        if self.marks.since(&found.name).is_some() {
            self.marks.stays(&found.name);
        }
        true
    }

    /// Notes what became of an object.
    pub(super) fn settle(&mut self, found: &Found, outcome: Outcome) {
        let user = self.used.user(&found.name);
        let counts = self.counts(&found.name);
        let amount = match outcome {
            Outcome::InUse => &mut counts.in_use,
            Outcome::Young => &mut counts.young,
            Outcome::Held | Outcome::Submitting => &mut counts.held,
            Outcome::Swept | Outcome::Absent | Outcome::Unspecified => &mut counts.swept,
        };
        add(amount, found.bytes);
        if let Some(told) = found.asked.and_then(|place| self.outcomes.get_mut(place)) {
            told.set_outcome(outcome);
            (told.bytes, told.user) = (found.bytes, user.filter(|_| outcome == Outcome::InUse));
        }
    }

    pub(super) fn swept(&self) -> u64 {
        let swept = |counts: &GarbageCounts| counts.swept.map_or(0, |amount| amount.objects);
        swept(&self.blobs) + swept(&self.texts)
    }

    fn counts(&mut self, name: &ObjectName) -> &mut GarbageCounts {
        if name.is_text() { &mut self.texts } else { &mut self.blobs }
    }

    /// Deletes damaged copies of what nothing needs. They are only there to be looked at, so nobody relies on them.
    pub(super) async fn clear_quarantine(
        &mut self,
        store: &Store,
        options: &GarbageOptions,
        now: u64,
        held: &HeldTexts,
    ) -> Result<(), IndexError> {
        let asked: HashSet<&ObjectName> = options.only.iter().collect();
        let mut doomed = Vec::new();
        let mut copies = store.quarantined();
        while let Some((name, object)) = copies.try_next().await? {
            let is_meant = options.only.is_empty() || asked.contains(&name);
            let is_old = object.age_ms(now) >= options.grace_ms();
            if is_meant && is_old && !self.used.contains(&name) && held.outcome(&name).is_none() {
                self.settle(&Found { name, bytes: object.bytes, asked: None }, Outcome::Swept);
                doomed.push(object.path);
            }
        }
        if options.dry_run { Ok(()) } else { Ok(store.delete_all(&doomed).await?) }
    }

    /// Decides what is marked from now on: texts that jobs hold are no garbage.
    pub(super) fn mark(&mut self, held: &HeldTexts) {
        for found in std::mem::take(&mut self.fresh) {
            if found.name.is_text() && held.texts.contains(&found.name.key()) {
                self.settle(&found, Outcome::Held);
            } else {
                add(&mut self.counts(&found.name).marked, found.bytes);
                self.fresh.push(found);
            }
        }
    }

    /// Writes the marks down.
    pub(super) async fn write_marks(&self, store: &Store, now: u64) -> Result<(), IndexError> {
        let names: Vec<ObjectName> = self.fresh.iter().map(|found| found.name).collect();
        Marks::add(store, now, &names).await?;
        self.marks.rewrite(store).await
    }

    pub(super) fn report(self, now: u64, grace_ms: u64) -> GarbageReport {
        let new = (!self.fresh.is_empty()).then_some(now);
        let oldest = self.marks.oldest().into_iter().chain(new).min();
        GarbageReport {
            blobs: Some(self.blobs),
            texts: Some(self.texts),
            next_sweep_unix_ms: oldest.map_or(0, |marked| marked.saturating_add(grace_ms)),
            submitting: self.spared_texts,
            objects: self.outcomes,
        }
    }
}

impl HeldTexts {
    /// Why the object must stay, if it must.
    fn outcome(&self, name: &ObjectName) -> Option<Outcome> {
        match name {
            ObjectName::Blob { .. } => None,
            text if self.texts.contains(&text.key()) => Some(Outcome::Held),
            ObjectName::Text(_) => self.submitting.then_some(Outcome::Submitting),
        }
    }
}

fn add(amount: &mut Option<Amount>, bytes: u64) {
    let amount = amount.get_or_insert_default();
    amount.objects += 1;
    amount.bytes += bytes;
}
