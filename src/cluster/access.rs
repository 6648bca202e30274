//! Access reviews: may somebody else do something?

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};

use super::{call, error::Result};
use crate::api::reference::Identity;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Question {
    /// Verb.
    pub verb: &'static str,
    /// API group; empty for core.
    pub group: String,
    /// Plural resource name.
    pub resource: String,
    /// Namespace; empty asks cluster-wide, which a right in one namespace does not answer.
    pub namespace: String,
    /// One object; absent asks for all of them.
    pub name: Option<String>,
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if let Some(name) = &self.name {
            write!(f, "/{name}")?;
        }
        if self.namespace.is_empty() {
            return f.write_str(" everywhere");
        }
        write!(f, " in {}", self.namespace)
    }
}

impl Question {
    fn attributes(&self) -> ResourceAttributes {
        ResourceAttributes {
            verb: Some(self.verb.to_owned()),
            group: Some(self.group.clone()),
            resource: Some(self.resource.clone()),
            namespace: Some(self.namespace.clone()),
            name: self.name.clone(),
            ..ResourceAttributes::default()
        }
    }
}

/// Whether this process itself may do what is asked. An authorizer's error is "no".
pub async fn allowed_here(client: &Client, question: &Question) -> Result<bool> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(question.attributes()),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let params = PostParams::default();
    let what = format!("review {question}");
    let reviewed = call::repeat(&what, call::DEADLINE, || api.create(&params, &review)).await?;
    Ok(reviewed
        .status
        .is_some_and(|status| status.allowed && status.denied != Some(true)))
}

/// Whether `who` may do what is asked. An authorizer's error is "no".
pub async fn allowed(client: &Client, who: &Identity, question: &Question) -> Result<bool> {
    Ok(may(client, who, question).await? == Some(true))
}

/// The same; `None` where an authorizer could not tell, which is neither yes nor no.
pub async fn may(client: &Client, who: &Identity, question: &Question) -> Result<Option<bool>> {
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: who.username.clone(),
            uid: who.uid.clone(),
            groups: who.groups.clone(),
            resource_attributes: Some(question.attributes()),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let params = PostParams::default();
    let what = format!("review {question}");
    let reviewed = call::repeat(&what, call::DEADLINE, || api.create(&params, &review)).await?;
    Ok(reviewed.status.and_then(|status| {
        let allowed = status.allowed && status.denied != Some(true);
        (allowed || status.evaluation_error.is_none()).then_some(allowed)
    }))
}
