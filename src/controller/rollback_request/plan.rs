//! From a request to a plan: resolve, compare, rate, choose the policy, bind; for the first time also check and write.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{
    gate::{self, Approved},
    gather::{self, CapturedObject, ReadBefore, Sides},
    preflight, target, written,
};
use crate::{
    api::{
        RollbackPlan, RollbackRequest, reasons,
        reference::{ResolvedSnapshot, Risk},
        rollback_plan::{PreflightOutcome, PreflightResult},
        rollback_request::{Conflict, Images, Prune, SecretsHandling, Strategy},
        snapshot::{Capture, Component},
    },
    capture::{Catalog, Failure},
    cluster::{Class, clock, list},
    controller::{
        approval_request::{self, Asking},
        context::Context,
        tasks,
    },
    domain::{
        approval::policy::{Chosen, NoRoute, Traits},
        object::{Digest, ObjectId, canonical},
        plan::{self, Binding, Bound, Drafted, Facts, Inputs, Options, Pin, Plan, PutBack, put_back, risk},
        report,
        snapshot::{Extras, Selection},
    },
    repository::{Repository, Room},
};

/// Every component whose objects a plan may name.
const EVERY: [Component; 5] = [
    Component::Configuration,
    Component::Workloads,
    Component::Volumes,
    Component::Policy,
    Component::Infrastructure,
];

/// A plan that was written.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// What the target meant.
    pub resolved: ResolvedSnapshot,
    /// The object.
    pub plan: RollbackPlan,
    /// What stands in the way; empty is nothing.
    pub obstacles: Vec<PreflightResult>,
    /// Whether there is nothing to write to the target.
    pub empty: bool,
    /// When live was compared.
    pub compared: Instant,
    /// How it is approved, or why it cannot be.
    pub route: Result<Chosen, NoRoute>,
}

/// Where a plan leads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Aim<'a> {
    /// To the target of the request, under the policy that fits now.
    Target,
    /// What is left on the way there, under the policy (its digest) that it was approved by.
    Rest(Digest),
    /// Back to the safety snapshot, under that policy: only these objects, which the execution wrote.
    Undo(&'a BTreeSet<ObjectId>, Digest),
}

/// Everything that a plan was made from; the plan can be made from it again.
pub(super) struct Made {
    /// The Snapshot that it leads to.
    pub resolved: ResolvedSnapshot,
    /// What the Snapshot holds beside objects.
    pub extras: Extras,
    /// Both sides.
    pub sides: Sides,
    /// What was asked for.
    pub options: Options,
    /// Factors and level.
    pub risk: Risk,
    /// How it is approved, or why it cannot be; `None` where the policy was given.
    pub route: Option<Result<Chosen, NoRoute>>,
    facts: Facts,
    binding: Binding,
    captured_at: Timestamp,
}

impl Made {
    /// The plan for the target again, knowing what the server puts back.
    async fn knowing(
        mut self,
        context: &Context,
        request: &RollbackRequest,
        put_back: PutBack,
    ) -> Result<(Self, Plan<Bound>), Failure> {
        self.facts.put_back = put_back;
        let drafted = draft(&self.sides, &self.options, &self.facts)?;
        self.risk = rating(&drafted, self.captured_at, &self.sides, &self.extras);
        let (route, policy) = route(context, request, &self.resolved, &drafted, &self.risk).await?;
        self.route = Some(route);
        self.binding.policy_digest = policy;
        let bound = drafted.bind(self.binding.clone(), &self.sides.key);
        Ok((self, bound))
    }

    /// The same plan, but that `drifted` objects stay as they are.
    pub(super) fn keeping(&self, drifted: BTreeSet<ObjectId>) -> Result<Plan<Bound>, Failure> {
        let facts = Facts {
            drifted,
            ..self.facts.clone()
        };
        let plan = draft(&self.sides, &self.options, &facts)?;
        Ok(plan.bind(self.binding.clone(), &self.sides.key))
    }
}

/// Makes, checks and writes the plan of `request`.
pub(super) async fn make(
    context: &Context,
    catalog: &Mutex<Catalog>,
    read: &Arc<ReadBefore>,
    request: &RollbackRequest,
) -> Result<Written, Failure> {
    let repository = super::repository(context)?;
    repository.refresh().await.map_err(|e| super::store_failure(&e))?;
    let resolved = match request.status.as_ref().and_then(|s| s.resolved.clone()) {
        Some(resolved) => resolved,
        None => target::resolve(context, catalog, &repository, request).await?,
    };
    if !request.spec.dry_run
        && let Some(executed) = gate::ledger(&repository, request)
            .await
            .map_err(|e| super::store_failure(&e))?
    {
        let message = format!(
            "it ran before, as execution {}; make a request of another name, or with another requestId",
            executed.execution
        );
        return Err(Failure::new(Class::Invalid, reasons::ALREADY_EXECUTED, message));
    }
    let verified = preflight::verify_contents(&repository, &resolved);
    let compared = Instant::now();
    let known = PutBack::new();
    let (made, bound) = from_live(context, catalog, request, &resolved, Aim::Target, &known, &[]).await?;
    let (mut checks, put_back) = preflight::check(context, request, &resolved, verified, &made.sides, &bound).await?;
    let (made, bound) = if put_back.is_empty() {
        (made, bound)
    } else {
        let (made, bound) = made.knowing(context, request, put_back).await?;
        preflight::check_less(context, request, &made.sides, &bound, &mut checks).await?;
        (made, bound)
    };
    let readable = preflight::readable(context, request, &made.sides, &bound).await?;
    let obstacles: Vec<_> = checks
        .iter()
        .filter(|c| c.result == PreflightOutcome::Failed)
        .cloned()
        .collect();
    let empty = bound.is_empty();
    let to_keep = !empty || !made.facts.put_back.is_empty();
    // What an approval will be bound to is kept before anybody is asked: the gate compares with it.
    let kept = async {
        if !obstacles.is_empty() || !to_keep || request.spec.dry_run {
            return Ok(());
        }
        let name = items_name(request, bound.digest());
        let approved = Approved {
            namespace_uid: gate::namespace_uid(context, request).await?.unwrap_or_default(),
            items: bound.bound_items().to_vec(),
            put_back: put_back::to_entries(made.facts.put_back.clone()),
        };
        let put = repository.put_document(Room::Plans, &name, &approved).await;
        put.map(drop).map_err(|e| super::store_failure(&e))
    };
    let written = written::write(context, &repository, request, &bound, &made, checks, &readable);
    let (plan, ()) = futures::try_join!(Box::pin(written), kept)?;
    // Made for the target, which chooses.
    let route = made.route.clone().unwrap_or(Err(NoRoute::NoMatchingPolicy));
    let Made { sides, .. } = made;
    let Sides { captured, live, .. } = sides;
    if route.is_ok() && obstacles.is_empty() && !empty && !request.spec.dry_run {
        read.keep(request.uid().unwrap_or_default(), captured);
    } else {
        tasks::let_go(captured);
    }
    tasks::let_go((live, bound, readable));
    Ok(Written {
        resolved,
        plan,
        obstacles,
        empty,
        compared,
        route,
    })
}

/// Name of the document that holds the bound items of a plan of `request`.
pub(super) fn items_name(request: &RollbackRequest, digest: Digest) -> String {
    report::name(&request.uid().unwrap_or_default(), digest)
}

/// What the server puts back, as it was learned when the plan of `request` was made.
pub(super) async fn put_back(repository: &Repository, request: &RollbackRequest) -> Result<PutBack, Failure> {
    let plan = request.status.as_ref().and_then(|status| status.plan.as_ref());
    let Some(digest) = plan.and_then(|plan| plan.digest.parse().ok()) else {
        return Ok(PutBack::new());
    };
    let approved = gate::approved(repository, request, digest).await?;
    Ok(approved.map(|approved| approved.put_back()).unwrap_or_default())
}

/// A plan from what the Snapshot holds and what is live now, given what the server puts back, and what of the Snapshot was read
/// `before`. Nothing is written.
pub(super) async fn from_live(
    context: &Context,
    catalog: &Mutex<Catalog>,
    request: &RollbackRequest,
    resolved: &ResolvedSnapshot,
    aim: Aim<'_>,
    put_back: &PutBack,
    before: &[CapturedObject],
) -> Result<(Made, Plan<Bound>), Failure> {
    let repository = super::repository(context)?;
    let manifest = repository
        .manifest(&resolved.uid)
        .await
        .map_err(|e| super::store_failure(&e))?;
    let record = manifest.record().clone();
    if record.digest.to_string() != resolved.digest {
        let message = format!(
            "the stored contents of snapshot {} have another digest than its status; nothing is restored from them",
            resolved.name
        );
        return Err(Failure::new(Class::Corrupt, reasons::CORRUPT, message));
    }
    let extras = gather::extras(&manifest).await?;
    let namespace = request.namespace().unwrap_or_default();
    let pins = pins(request, &extras);
    let whole = !pins.is_empty();
    let sides = gather::sides(
        context,
        catalog,
        &repository,
        &manifest,
        &extras,
        &namespace,
        whole,
        before,
    )
    .await?;
    let options = match aim {
        Aim::Target | Aim::Rest(_) => options(request, &extras, &sides)?,
        Aim::Undo(wrote, _) => undo_options(request, wrote),
    };
    let facts = Facts {
        snapshot_started: Some(match aim {
            Aim::Target | Aim::Rest(_) => record.created_at,
            // What this execution created goes, however young the clock of whole seconds says it is.
            Aim::Undo(..) => Timestamp::UNIX_EPOCH,
        }),
        captured_kinds: sides.captured_kinds.clone(),
        unserved: sides.unserved.clone(),
        owners: sides.owners.clone(),
        pins,
        put_back: put_back.clone(),
        drifted: BTreeSet::new(),
    };
    let drafted = draft(&sides, &options, &facts)?;
    let risk = rating(&drafted, record.created_at, &sides, &extras);
    let (route, policy) = match aim {
        Aim::Target => {
            let (route, policy) = route(context, request, resolved, &drafted, &risk).await?;
            (Some(route), policy)
        }
        Aim::Rest(policy) | Aim::Undo(_, policy) => (None, Some(policy)),
    };
    let binding = binding(context, request, resolved, policy).await?;
    let bound = drafted.bind(binding.clone(), &sides.key);
    let made = Made {
        resolved: resolved.clone(),
        extras,
        captured_at: record.created_at,
        sides,
        options,
        risk,
        route,
        facts,
        binding,
    };
    Ok((made, bound))
}

/// How what `drafted` does is approved, and the digest of the policy.
async fn route(
    context: &Context,
    request: &RollbackRequest,
    resolved: &ResolvedSnapshot,
    drafted: &Plan<Drafted>,
    risk: &Risk,
) -> Result<(Result<Chosen, NoRoute>, Option<Digest>), Failure> {
    let components = drafted.writes().map(|item| item.component).collect();
    let asking = Asking {
        risk: risk.level,
        traits: Traits::of(drafted),
        components: &components,
        snapshot: resolved,
    };
    let route = approval_request::choose(context, request, &asking).await?;
    let policy = route.as_ref().ok().and_then(|chosen| chosen.policy.digest.parse().ok());
    Ok((route, policy))
}

fn draft(sides: &Sides, options: &Options, facts: &Facts) -> Result<Plan<Drafted>, Failure> {
    let (captured, live) = (sides.captured(), sides.live());
    plan::build(&Inputs {
        captured: &captured,
        live: &live,
        options,
        facts,
    })
    .map_err(|e| Failure::new(Class::Invalid, reasons::PREFLIGHT_FAILED, e.to_string()))
}

fn rating(drafted: &Plan<Drafted>, captured_at: Timestamp, sides: &Sides, extras: &Extras) -> Risk {
    let age = clock::now().duration_since(captured_at);
    let facts = risk::RiskFacts {
        snapshot_age: if age.is_negative() {
            Duration::ZERO
        } else {
            age.unsigned_abs()
        },
        ready_pods: ready_pods(sides),
        image_digests: image_digests(extras),
        ..risk::RiskFacts::default()
    };
    risk::rate(drafted, &facts)
}

/// Back to how it was before the first write, for what the execution wrote and nothing else.
fn undo_options(request: &RollbackRequest, wrote: &BTreeSet<ObjectId>) -> Options {
    Options {
        strategy: Strategy::Selective,
        selected: wrote.clone(),
        components: EVERY.into_iter().collect(),
        // Who was restarted on the way there is known, also after a crash, when the changes that caused it are gone.
        cascade: false,
        prune: Prune::Created,
        conflict: Conflict::Overwrite,
        immutable: request.spec.immutable,
        secrets: SecretsHandling::Restore,
        images: Images::Auto,
        ..Options::default()
    }
}

fn options(request: &RollbackRequest, extras: &Extras, sides: &Sides) -> Result<Options, Failure> {
    let spec = &request.spec;
    let captured = extras.capture.as_ref().and_then(|c| c.components.clone());
    for component in &spec.components {
        if captured.as_ref().is_some_and(|list| !list.contains(component)) {
            let message = format!(
                "components: the snapshot did not capture {component:?}; remove it, or name a snapshot that did"
            );
            return Err(Failure::new(Class::Invalid, reasons::INVALID_SPEC, message));
        }
    }
    let mut options = Options {
        strategy: spec.strategy,
        components: spec.components.iter().copied().collect(),
        cascade: spec.cascade,
        prune: spec.prune,
        conflict: spec.conflict,
        immutable: spec.immutable,
        secrets: spec.secrets,
        images: spec.images,
        ..Options::default()
    };
    if let (Strategy::Selective, Some(objects)) = (spec.strategy, &spec.objects) {
        let pick = |include: &[_], selector: Option<_>| {
            let capture = Capture {
                components: Some(EVERY.to_vec()),
                include: include.to_vec(),
                selector,
                follow_references: Some(false),
                ..Capture::default()
            };
            Selection::compile(&capture)
                .map(|selection| sides.picked(&selection))
                .map_err(|e| Failure::new(Class::Invalid, reasons::INVALID_SPEC, format!("objects: {e}")))
        };
        options.selected = pick(&objects.include, objects.selector.clone())?;
        if !objects.exclude.is_empty() {
            options.preserved = pick(&objects.exclude, None)?;
        }
        if options.selected.is_empty() {
            let message = "objects selects nothing that the snapshot holds or that is live; `kubectl backstep snapshot show` lists what it holds";
            return Err(Failure::new(Class::Invalid, reasons::NOTHING_SELECTED, message));
        }
    }
    Ok(options)
}

/// With `images: Pin`, the captured digest of each image that can be pulled by it.
fn pins(request: &RollbackRequest, extras: &Extras) -> Vec<Pin> {
    if request.spec.images != Images::Pin {
        return Vec::new();
    }
    extras
        .images
        .iter()
        .filter(|image| image.reason.is_none() && !image.image.contains('@'))
        .filter_map(|image| {
            let reference = format!("{}@{}", image.image, image.digest.as_ref()?);
            Some(Pin {
                workload: workload_id(&image.workload)?,
                container: image.container.clone(),
                reference,
            })
        })
        .collect()
}

/// `Deployment/web` as an identity.
fn workload_id(display: &str) -> Option<ObjectId> {
    let (kind, name) = display.split_once('/')?;
    let group = match kind {
        "Pod" => "",
        "Job" | "CronJob" => "batch",
        _ => "apps",
    };
    Some(ObjectId::new(group, kind, name))
}

fn image_digests(extras: &Extras) -> BTreeMap<(ObjectId, String), String> {
    extras
        .images
        .iter()
        .filter_map(|image| {
            Some((
                (workload_id(&image.workload)?, image.container.clone()),
                image.digest.clone()?,
            ))
        })
        .collect()
}

fn ready_pods(sides: &Sides) -> BTreeMap<ObjectId, u32> {
    sides
        .live
        .iter()
        .filter(|l| l.component == Component::Workloads)
        .filter_map(|l| {
            let status = &l.raw["status"];
            let ready = status["readyReplicas"]
                .as_u64()
                .or_else(|| status["numberReady"].as_u64())?;
            Some((l.id.clone(), u32::try_from(ready).unwrap_or(u32::MAX)))
        })
        .collect()
}

/// Everything that an approval of this plan would be bound to.
async fn binding(
    context: &Context,
    request: &RollbackRequest,
    resolved: &ResolvedSnapshot,
    policy_digest: Option<Digest>,
) -> Result<Binding, Failure> {
    let bytes = list::get_metadata(
        &context.client,
        "/api/v1/namespaces/kube-system",
        "get namespace kube-system",
    )
    .await?;
    let cluster: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let spec = bound_spec(request);
    Ok(Binding {
        cluster: cluster["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        request_uid: request.uid().unwrap_or_default(),
        request_digest: canonical::digest(&spec),
        snapshot_uid: resolved.uid.clone(),
        snapshot_digest: resolved
            .digest
            .parse()
            .map_err(|e| Failure::new(Class::Corrupt, reasons::CORRUPT, format!("{e}")))?,
        acting_user: gate::acting(request).and_then(|by| by.username).unwrap_or_default(),
        policy_digest,
        hooks: spec.get("hooks").cloned().unwrap_or(Value::Null),
        tests: spec.get("verify").cloned().unwrap_or(Value::Null),
    })
}

/// The spec of a request as plans and the ledger are bound to it: without who asked, and without what may change.
pub(super) fn bound_spec(request: &RollbackRequest) -> Value {
    let mut spec = serde_json::to_value(&request.spec).unwrap_or_default();
    if let Some(fields) = spec.as_object_mut() {
        for free in ["requestedBy", "suspend", "cancel"] {
            fields.remove(free);
        }
    }
    spec
}
