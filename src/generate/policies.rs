//! The chart's admission policies without Helm: what differs between installations becomes a placeholder.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{Document, Error, HEADER, yaml};
use crate::cluster::guard::expected::{CONTROLLERS, NAMESPACE, OPERATOR};

const TEMPLATES: &str = "charts/backstep/templates/admission";

/// Everything that the guard compares, as one list.
///
/// # Errors
/// A template cannot be read, or holds something that has no placeholder.
pub(super) fn compiled_in(root: &Path) -> Result<Document, Error> {
    let folder = root.join(TEMPLATES);
    let failed = |source| Error::File {
        path: folder.clone(),
        source,
    };
    let mut files: Vec<_> = fs::read_dir(&folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    files.sort();
    let mut policies = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).map_err(|source| Error::File {
            path: path.clone(),
            source,
        })?;
        let wrong = |reason: String| Error::Template {
            path: path.clone(),
            reason,
        };
        for document in filled(&text).map_err(wrong)?.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).map_err(|error| wrong(error.to_string()))?;
            policies.push(json!({
                "apiVersion": object["apiVersion"], "kind": object["kind"],
                "metadata": {"name": object["metadata"]["name"]}, "spec": object["spec"],
            }));
        }
    }
    let path = "src/cluster/guard/policies.yaml".to_owned();
    let from = HEADER.replace("src/api", TEMPLATES);
    Ok(Document {
        text: format!("{from}{}", yaml(&path, &Value::Array(policies))?),
        path,
    })
}

/// The template without its actions.
fn filled(template: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut in_comment = false;
    for line in template.lines() {
        in_comment |= line.starts_with("{{- /*");
        if in_comment {
            in_comment = !line.ends_with("*/}}");
            continue;
        }
        // Conditions around whole documents, and labels, which no policy is compared by.
        if line.starts_with("{{- if ") || line.starts_with("{{- end }}") || line.contains("\"backstep.labels\"") {
            continue;
        }
        let line = line
            .replace(
                "{{ include \"backstep.username\" . | squote }}",
                &format!("'{OPERATOR}'"),
            )
            .replace("{{ include \"backstep.systemControllers\" . }}", CONTROLLERS)
            .replace("{{ .Release.Namespace | squote }}", &format!("'{NAMESPACE}'"));
        if line.contains("{{") {
            return Err(format!("`{}` has no placeholder; add one", line.trim()));
        }
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_placeholder_is_refused_instead_of_guessed() {
        let known =
            "{{- /* Why. */}}\n{{- if .Values.x }}\nspec:\n  a: {{ .Release.Namespace | squote }}\n{{- end }}\n";
        assert_eq!(filled(known).unwrap(), "spec:\n  a: '@namespace@'\n");
        let unknown = filled("a: {{ .Values.other }}\n").unwrap_err();
        assert!(unknown.contains(".Values.other"), "{unknown}");
    }
}
