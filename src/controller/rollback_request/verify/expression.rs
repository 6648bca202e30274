//! CEL over one object. Expressions come from users: names are checked when the plan is made, and an evaluation has a stack of its own,
//! a bound on its steps that is computed before it begins, and a deadline.

use std::{collections::HashMap, sync::Arc, time::Duration};

use cel::{
    Context, ExecutionError, Program, Value,
    common::ast::{ComprehensionExpr, EntryExpr, Expr, IdedExpr},
    objects::{Key, Map},
};
use serde_json::Value as Json;
use tokio::sync::{Semaphore, oneshot};

/// Name of the object in expressions.
const OBJECT: &str = "object";
/// Most characters of an expression, as the CRD says.
const LONGEST: usize = 4096;
/// Most brackets within brackets.
const DEEPEST: usize = 64;
/// Stack of an evaluation: an expression of 4096 characters can be thousands of calls deep. Only what is used is taken.
const STACK: usize = 256 << 20;
/// Most steps (about one nanosecond each) of an evaluation.
const MOST_STEPS: u64 = 1_000_000_000;
/// Evaluations at once. One that outlives its deadline keeps its place until its steps are done.
static EVALUATIONS: Semaphore = Semaphore::const_new(4);

/// Types that may be named.
const TYPES: [&str; 10] = [
    "bool",
    "bytes",
    "double",
    "dyn",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "uint",
];
/// Functions that the interpreter knows; operators start with another character.
const FUNCTIONS: [&str; 13] = [
    "bool",
    "bytes",
    "contains",
    "double",
    "dyn",
    "endsWith",
    "int",
    "matches",
    "max",
    "min",
    "size",
    "startsWith",
    "string",
];
const MORE_FUNCTIONS: [&str; 2] = ["type", "uint"];

/// What an expression says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It holds.
    Holds,
    /// It does not.
    DoesNotHold,
    /// It reads a field that the object does not have.
    FieldAbsent,
    /// It cannot be told, and why; never a value of the object.
    Unknown(String),
}

/// What is wrong with an expression, for whoever wrote it.
pub(super) fn problem(text: &str) -> Option<String> {
    let text = text.to_owned();
    on_own_stack(move || compile(&text).and_then(|program| check(program.expression())).err()).unwrap_or_else(Some)
}

/// Whether `text` holds for `object`, told within `deadline`.
pub(super) async fn evaluate(text: String, object: Json, deadline: Duration) -> Answer {
    let told = async {
        let Ok(permit) = EVALUATIONS.acquire().await else {
            return Answer::Unknown("the operator stops".into());
        };
        let (answer, told) = oneshot::channel();
        let spawned = thread(move || {
            let _permit = permit;
            // Nobody may be waiting any more.
            drop(answer.send(answer_of(&text, object)));
        });
        match spawned {
            Ok(_) => told
                .await
                .unwrap_or_else(|_| Answer::Unknown("the expression cannot be evaluated".into())),
            Err(message) => Answer::Unknown(message),
        }
    };
    tokio::time::timeout(deadline, told)
        .await
        .unwrap_or_else(|_| Answer::Unknown(format!("the expression was not evaluated within {deadline:?}")))
}

fn thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<std::thread::JoinHandle<T>, String> {
    std::thread::Builder::new()
        .name("cel".into())
        .stack_size(STACK)
        .spawn(work)
        .map_err(|error| format!("an evaluation cannot be started: {error}"))
}

fn on_own_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    thread(work)?
        .join()
        .map_err(|_| "the expression cannot be read; write it in a simpler way".to_owned())
}

fn compile(text: &str) -> Result<Program, String> {
    if text.chars().count() > LONGEST {
        return Err(format!("the expression is longer than {LONGEST} characters"));
    }
    let depth = text.bytes().scan(0_usize, |depth, byte| {
        match byte {
            b'(' | b'[' | b'{' => *depth += 1,
            b')' | b']' | b'}' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    if depth.max().unwrap_or_default() > DEEPEST {
        return Err(format!("the expression nests more than {DEEPEST} brackets"));
    }
    Program::compile(text).map_err(|errors| format!("the expression is no CEL: {errors}"))
}

fn answer_of(text: &str, object: Json) -> Answer {
    let program = match compile(text).and_then(|program| check(program.expression()).map(|()| program)) {
        Ok(program) => program,
        Err(message) => return Answer::Unknown(message),
    };
    if steps(program.expression(), &Sizes::of(&object)) > MOST_STEPS {
        return Answer::Unknown("the expression is too costly for an object of this size; nest fewer loops".into());
    }
    let mut context = Context::default();
    context.add_variable_from_value(OBJECT, value(object));
    // Errors of the interpreter may hold values, so their texts are not shown.
    match program.execute(&context) {
        Ok(Value::Bool(true)) => Answer::Holds,
        Ok(Value::Bool(false)) => Answer::DoesNotHold,
        Ok(_) => Answer::Unknown("the expression gives neither true nor false".into()),
        Err(ExecutionError::NoSuchKey(_) | ExecutionError::IndexOutOfBounds(_)) => Answer::FieldAbsent,
        Err(ExecutionError::NoSuchOverload(_) | ExecutionError::ValuesNotComparable(..)) => {
            Answer::Unknown("the expression compares or combines values of different types".into())
        }
        Err(_) => Answer::Unknown("the expression cannot be evaluated over this object".into()),
    }
}

/// As Kubernetes reads objects: whole numbers are `int`.
fn value(json: Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(bool) => Value::Bool(bool),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int),
            (None, Some(uint)) => Value::UInt(uint),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(Arc::new(text)),
        Json::Array(items) => Value::List(Arc::new(items.into_iter().map(value).collect())),
        Json::Object(fields) => {
            let map: HashMap<Key, Value> = fields
                .into_iter()
                .map(|(name, field)| (Key::from(name), value(field)))
                .collect();
            Value::Map(Map { map: Arc::new(map) })
        }
    }
}

/// Only the object, loop variables, types and known functions may be named.
fn check(expression: &IdedExpr) -> Result<(), String> {
    fn walk<'a>(node: &'a IdedExpr, scope: &mut Vec<&'a str>) -> Result<(), String> {
        match &node.expr {
            Expr::Ident(name) => {
                let known = name == OBJECT || scope.contains(&name.as_str()) || TYPES.contains(&name.as_str());
                if !known {
                    return Err(format!("the expression names `{name}`; only `{OBJECT}` is known"));
                }
            }
            Expr::Call(call) => {
                let name = call.func_name.as_str();
                let operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
                if !operator && !FUNCTIONS.contains(&name) && !MORE_FUNCTIONS.contains(&name) {
                    return Err(format!("the expression calls `{name}`, which is not known"));
                }
            }
            Expr::Comprehension(it) => {
                walk(&it.iter_range, scope)?;
                walk(&it.accu_init, scope)?;
                let outer = scope.len();
                scope.extend([it.iter_var.as_str(), it.accu_var.as_str()]);
                scope.extend(it.iter_var2.as_deref());
                let inner = [&it.loop_cond, &it.loop_step, &it.result];
                inner.into_iter().try_for_each(|node| walk(node, scope))?;
                scope.truncate(outer);
                return Ok(());
            }
            Expr::Unspecified | Expr::List(_) | Expr::Literal(_) | Expr::Map(_) | Expr::Select(_) | Expr::Struct(_) => {
            }
        }
        children(node).into_iter().try_for_each(|node| walk(node, scope))
    }
    walk(expression, &mut Vec::new())
}

/// Parts of an expression, but for those of a comprehension.
fn children(node: &IdedExpr) -> Vec<&IdedExpr> {
    fn entry(expr: &EntryExpr) -> Vec<&IdedExpr> {
        match expr {
            EntryExpr::StructField(field) => vec![&field.value],
            EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
        }
    }
    match &node.expr {
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|e| entry(&e.expr)).collect(),
        Expr::Select(select) => vec![&*select.operand],
        Expr::Struct(fields) => fields.entries.iter().flat_map(|e| entry(&e.expr)).collect(),
        Expr::Comprehension(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

/// How large an object is.
struct Sizes {
    /// Most elements of a list or map.
    longest: u64,
    /// Elements and bytes of text.
    total: u64,
}

impl Sizes {
    fn of(object: &Json) -> Self {
        let mut sizes = Self { longest: 1, total: 1 };
        sizes.add(object);
        sizes
    }

    fn add(&mut self, value: &Json) {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.total += 1;
        match value {
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
            Json::String(text) => self.total += count(text.len()),
            Json::Array(items) => {
                self.longest = self.longest.max(count(items.len()));
                for item in items {
                    self.add(item);
                }
            }
            Json::Object(fields) => {
                self.longest = self.longest.max(count(fields.len()));
                for (name, field) in fields {
                    self.total += count(name.len());
                    self.add(field);
                }
            }
        }
    }
}

/// Most steps that an evaluation takes: every loop runs over the longest list, and every operation may look at all of the object.
fn steps(node: &IdedExpr, sizes: &Sizes) -> u64 {
    if let Expr::Comprehension(it) = &node.expr {
        let ComprehensionExpr {
            iter_range,
            accu_init,
            loop_cond,
            loop_step,
            result,
            ..
        } = &**it;
        // A literal or a sum of lists is longer than what it is made of.
        let rounds = sizes.longest.saturating_mul(parts(iter_range));
        let round = steps(loop_cond, sizes).saturating_add(steps(loop_step, sizes));
        return [iter_range, accu_init, result]
            .into_iter()
            .map(|node| steps(node, sizes))
            .fold(rounds.saturating_mul(round), u64::saturating_add)
            .saturating_add(sizes.total);
    }
    let parts = children(node);
    let own = match &node.expr {
        Expr::Call(call) => {
            let simple = matches!(
                call.func_name.as_str(),
                "_&&_" | "_||_" | "!_" | "_?_:_" | "@not_strictly_false" | "_[_]"
            );
            // Comparing with a literal takes no longer than the literal.
            let literal = matches!(call.func_name.as_str(), "_==_" | "_!=_")
                && parts.iter().any(|part| matches!(part.expr, Expr::Literal(_)));
            if simple || literal { 1 } else { sizes.total }
        }
        _ => 1,
    };
    parts
        .into_iter()
        .map(|part| steps(part, sizes))
        .fold(own, u64::saturating_add)
}

/// Nodes of an expression.
fn parts(node: &IdedExpr) -> u64 {
    let inner = match &node.expr {
        Expr::Comprehension(it) => vec![&it.iter_range, &it.accu_init, &it.loop_cond, &it.loop_step, &it.result],
        _ => children(node),
    };
    inner.into_iter().map(parts).fold(1, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(text: &str, object: &Json) -> Answer {
        let (text, object) = (text.to_owned(), object.clone());
        on_own_stack(move || answer_of(&text, object)).unwrap()
    }

    #[test]
    fn an_expression_holds_does_not_hold_or_reads_what_is_not_there() {
        let object = json!({
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"replicas": 3, "share": 0.5},
            "status": {"readyReplicas": 3, "conditions": [{"type": "Available", "status": "True"}]},
        });
        for text in [
            "object.spec.replicas == 3",
            "object.status.readyReplicas >= object.spec.replicas",
            "object.spec.replicas + 1 == 4",
            "object.spec.share < 1.0",
            "object.metadata.labels['app'] == 'web'",
            "has(object.metadata.labels) && !has(object.metadata.annotations)",
            "object.status.conditions.exists(c, c.type == 'Available' && c.status == 'True')",
            "object.metadata.name.matches('^w.b$') && size(object.status.conditions) == 1",
            "'app' in object.metadata.labels",
            "object.metadata.labels.all(k, k != 'x')",
            "type(object.spec.replicas) == int",
            "object.status.conditions.filter(c, c.status == 'True').map(c, c.type) == ['Available']",
            "string(object.spec.replicas) == '3' && object.metadata.name.startsWith('w')",
        ] {
            assert_eq!(problem(text), None, "{text}");
            assert_eq!(told(text, &object), Answer::Holds, "{text}");
        }
        assert_eq!(told("object.spec.replicas == 2", &object), Answer::DoesNotHold);
        assert_eq!(told("object.spec.paused == true", &object), Answer::FieldAbsent);
        assert!(matches!(told("object.metadata.name", &object), Answer::Unknown(_)));
        assert!(matches!(told("object.metadata.name > 3", &object), Answer::Unknown(_)));
    }

    #[test]
    fn what_is_no_expression_over_the_object_is_refused_when_the_plan_is_made() {
        for (text, said) in [
            ("object.", "no CEL"),
            ("self.spec.replicas == 3", "`self`"),
            ("object.items.all(x, y == 1)", "`y`"),
            ("getenv('HOME') == ''", "`getenv`"),
            (&"(".repeat(100), "brackets"),
            (&"1".repeat(5000), "longer"),
        ] {
            let problem = problem(text).unwrap_or_default();
            assert!(problem.contains(said), "{text}: {problem}");
        }
    }

    #[test]
    fn no_answer_holds_a_value_of_the_object() {
        let object = json!({"data": {"password": "canary-7c1"}});
        for text in [
            "object.data.password > 3",
            "object.data.password",
            "object.data[object.data.password] == ''",
            "object.data.password + 1 == 2",
            "int(object.data.password) == 1",
            "object.data.password.matches('(')",
            "object.data.password.all(x, true)",
            "[1][object.data.password] == 1",
            "object.data.password.size().startsWith('a')",
        ] {
            let answer = format!("{:?}", told(text, &object));
            assert!(!answer.contains("canary"), "{text}: {answer}");
            assert_ne!(answer, "Holds", "{text}");
        }
    }

    #[test]
    fn the_deepest_expressions_end_neither_in_a_panic_nor_in_an_overflow() {
        let object = json!({"a": 1});
        let repeated = |unit: &str, end: &str| {
            let times = (LONGEST - end.len()) / unit.len();
            format!("{}{end}", unit.repeat(times))
        };
        for text in [
            repeated("!", "true"),
            repeated("-", "1"),
            repeated("1+", "1"),
            repeated("true?", "1"),
            repeated("true?1:", "1"),
            repeated("true&&", "true"),
            repeated("[", ""),
            repeated("a.", "b"),
            repeated("object.", "b"),
            repeated("object[", "0"),
            repeated("\"", ""),
            repeated("1==", "1"),
            repeated("{1:", "1"),
            repeated("object.all(x,", "true"),
        ] {
            // A panic would be an error of the thread.
            let (shown, object) = (text.chars().take(20).collect::<String>(), object.clone());
            let ended = on_own_stack(move || answer_of(&text, object));
            assert!(ended.is_ok(), "{shown}: {ended:?}");
        }
    }

    #[test]
    fn an_expression_that_would_take_hours_is_not_begun() {
        let object = json!({"items": (0..100_000).collect::<Vec<u32>>()});
        for text in [
            "object.items.all(x, object.items.all(y, object.items.all(z, x + y + z >= 0)))",
            "object.items.all(x, object.items.exists(y, object == object))",
        ] {
            let Answer::Unknown(why) = told(text, &object) else {
                panic!("{text} was evaluated");
            };
            assert!(why.contains("too costly"), "{why}");
        }
        assert_eq!(told("object.items.exists(x, x == 99999)", &object), Answer::Holds);
    }

    #[tokio::test]
    async fn an_evaluation_is_over_at_its_deadline() {
        let object = json!({"items": (0..3_000).collect::<Vec<u32>>()});
        let text = "object.items.all(x, object.items.all(y, x != y + 5000))";
        let answer = evaluate(text.into(), object, Duration::from_millis(1)).await;
        assert!(
            matches!(&answer, Answer::Unknown(why) if why.contains("not evaluated within") || why.contains("too costly")),
            "{answer:?}"
        );
    }
}
