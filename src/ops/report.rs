//! The whole of a plan, also where it is longer than its object may be, and where its request is gone.

use kube::ResourceExt as _;

use super::{
    Class, Error, Result, Session,
    contents::{Contents, failed},
    history, rollback,
    store::Location,
};
use crate::{
    api::{RollbackPlan, rollback_plan::PlanItem},
    domain::{
        object::Digest,
        report::{self, Head, Part},
    },
    repository::Room,
};

/// A whole plan.
pub enum Whole {
    /// It fits into its object.
    Object(Box<RollbackPlan>),
    /// The store keeps it, in parts.
    Stored(Box<Stored>),
}

/// A plan in the store.
pub struct Stored {
    contents: Contents,
    head: Head,
}

impl Stored {
    /// The plan without its items.
    pub fn plan(&self) -> RollbackPlan {
        let mut plan = RollbackPlan::new(&self.head.name, self.head.spec.clone());
        plan.metadata.namespace = Some(self.head.namespace.clone());
        plan
    }

    /// How many parts its items are in; one is held at a time.
    pub fn parts(&self) -> usize {
        self.head.parts.len()
    }

    /// The items of part `at`, in order.
    ///
    /// # Errors
    /// `Corrupt` where the part is not there or damaged; those of the store.
    pub async fn items(&self, at: usize) -> Result<Vec<PlanItem>> {
        let Some(name) = self.head.parts.get(at) else {
            return Ok(Vec::new());
        };
        let part: Option<Part> = self
            .contents
            .repository()
            .document(Room::Reports, name)
            .await
            .map_err(|e| failed(&e))?;
        part.map(|part| part.items).ok_or_else(|| {
            Error::new(
                Class::Corrupt,
                format!("a part of the plan {} is missing", self.head.name),
            )
            .because(format!("the store has no document reports/{name}"))
            .fix("the plan's object holds the first items; make the request again to see a new plan")
        })
    }
}

/// The whole plan of the request `name`, also of one that is gone.
///
/// # Errors
/// `NotFound` where no plan was made, or none is kept; `Forbidden` where only the store has it and the user may not read that.
pub async fn whole(session: &Session, chosen: Option<&Location>, name: &str) -> Result<Whole> {
    let (contents, uid, digest) = match rollback::find(session, name).await {
        Ok(request) => {
            let plan = rollback::plan(session, &request).await?;
            if let Some(plan) = plan.filter(|plan| !plan.spec.truncated) {
                return Ok(Whole::Object(Box::new(plan)));
            }
            let told = request.status.as_ref().and_then(|status| status.plan.as_ref());
            let digest = told.map(|plan| plan.digest.clone()).ok_or_else(|| {
                let doing = rollback::progress(&request).unwrap_or_else(|| "no operator has looked at it".to_owned());
                none(name).because(format!("it is {:?}: {doing}", rollback::phase(&request)))
            })?;
            let contents = Contents::open(session, chosen).await?;
            (contents, request.uid().unwrap_or_default(), digest)
        }
        Err(error) if error.class == Class::NotFound => {
            let contents = Contents::open(session, chosen).await?;
            let record = history::gone(session, &contents, name).await?.ok_or(error)?;
            let told = record.status.plan.as_ref().map(|plan| plan.digest.clone());
            (contents, record.uid, told.ok_or_else(|| none(name))?)
        }
        Err(error) => return Err(error),
    };
    let digest: Digest = digest
        .parse()
        .map_err(|e| Error::internal(format!("the digest of the plan cannot be read: {e}")))?;
    let document = report::name(&uid, digest);
    let head: Option<Head> = contents
        .repository()
        .document(Room::Reports, &document)
        .await
        .map_err(|e| failed(&e))?;
    match head {
        Some(head) => Ok(Whole::Stored(Box::new(Stored { contents, head }))),
        None => Err(none(name)
            .because("the store keeps plans that are longer than their object; this one was in its object, which is gone with the request")
            .fix(format!("kubectl backstep history {name} shows what came of it"))),
    }
}

fn none(name: &str) -> Error {
    Error::not_found(format!("there is no whole plan of rollbackrequest {name}"))
}
