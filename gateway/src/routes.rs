//! What the gateway lets through: every public route with its methods, upstream, access rule and class.
//!
//! A path that is not here does not exist for the outside world, whatever the upstreams serve.

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A group of equal upstream processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    Chat,
    Notify,
    Indexer,
    /// Who serves the pages of a web client, where there is one.
    Web,
}

impl Group {
    pub const ALL: [Self; 4] = [Self::Chat, Self::Notify, Self::Indexer, Self::Web];

    /// The name in configuration, health answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Notify => "notify",
            Self::Indexer => "indexer",
            Self::Web => "web",
        }
    }
}

/// Who answers a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Upstream(Group),
    /// `/health`: this process and its upstreams, as names and states.
    Health,
    /// `/health/simple`: this process is alive.
    Alive,
}

/// What a request must bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Public,
    /// A valid bearer token.
    Required,
    /// A valid bearer token, or a ticket in the query that the upstream redeems.
    Ticket,
}

/// What rate limits and load shedding go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Auth,
    Send,
    Read,
    Search,
    Stream,
}

impl Class {
    pub const ALL: [Self; 5] = [Self::Auth, Self::Send, Self::Read, Self::Search, Self::Stream];

    /// The name in configuration, rate limit fields and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Send => "send",
            Self::Read => "read",
            Self::Search => "search",
            Self::Stream => "stream",
        }
    }
}

/// One method of one path template.
#[derive(Debug)]
pub struct Route {
    pub method: Method,
    pub template: &'static str,
    pub target: Target,
    pub access: Access,
    pub class: Class,
    /// Longest request body, in bytes.
    pub body_bytes_max: usize,
}

impl Route {
    /// Whether the answer goes on for minutes or hours.
    pub fn is_stream(&self) -> bool {
        self.template == "/events"
    }

    /// Whether its answers are pages.
    pub fn is_web(&self) -> bool {
        self.target == Target::Upstream(Group::Web)
    }

    fn describe(&self) -> Value {
        json!({
            "method": self.method.as_str(),
            "path": self.template,
            "target": match self.target {
                Target::Upstream(group) => group.as_str(),
                Target::Health | Target::Alive => "gateway",
            },
            "access": match self.access {
                Access::Public => "public",
                Access::Required => "token",
                Access::Ticket => "token or ticket",
            },
            "class": self.class.as_str(),
            "body_bytes_max": self.body_bytes_max,
        })
    }
}

const KIB: usize = 1_024;

/// A method with its class and the longest body it takes.
type MethodRule = (Method, Class, usize);

/// Every public route: template, access rule, upstream, methods.
#[rustfmt::skip]
const TABLE: &[(&str, Access, Group, &[MethodRule])] = {
    use Access::{Public, Required, Ticket};
    use Class::{Auth, Read, Search, Send, Stream};
    use Group::{Chat, Indexer, Notify};
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const PUT: Method = Method::PUT;
    const PATCH: Method = Method::PATCH;
    const DELETE: Method = Method::DELETE;
    &[
        ("/api/signin",                                     Public,   Chat, &[(POST, Auth, 16 * KIB)]),
        ("/api/signup",                                     Public,   Chat, &[(POST, Auth, 16 * KIB)]),
        ("/api/refresh",                                    Public,   Chat, &[(POST, Auth, 16 * KIB)]),
        ("/api/logout",                                     Required, Chat, &[(POST, Auth, 16 * KIB)]),
        ("/api/me",                                         Required, Chat, &[(GET, Read, 0)]),
        ("/api/me/password",                                Required, Chat, &[(PUT, Auth, 16 * KIB)]),
        ("/api/sessions",                                   Required, Chat, &[(GET, Read, 0), (DELETE, Send, 16 * KIB)]),
        ("/api/sessions/{id}",                              Required, Chat, &[(DELETE, Send, 16 * KIB)]),
        ("/api/users",                                      Required, Chat, &[(GET, Read, 0)]),
        ("/api/users/{id}",                                 Required, Chat, &[(PATCH, Send, 16 * KIB), (DELETE, Send, 16 * KIB)]),
        ("/api/workspace",                                  Required, Chat, &[(GET, Read, 0), (PATCH, Send, 16 * KIB)]),
        ("/api/workspace/invitations",                      Required, Chat, &[(GET, Read, 0), (POST, Send, 16 * KIB)]),
        ("/api/workspace/invitations/{id}",                 Required, Chat, &[(DELETE, Send, 16 * KIB)]),
        ("/api/channels",                                   Required, Chat, &[(GET, Read, 0)]),
        ("/api/chat",                                       Required, Chat, &[(GET, Read, 0), (POST, Send, 256 * KIB)]),
        ("/api/chat/{id}",                                  Required, Chat, &[(GET, Read, 0), (PATCH, Send, 64 * KIB), (DELETE, Send, 16 * KIB)]),
        ("/api/chat/{id}/join",                             Required, Chat, &[(POST, Send, 16 * KIB)]),
        ("/api/chat/{id}/leave",                            Required, Chat, &[(POST, Send, 16 * KIB)]),
        ("/api/chat/{id}/members",                          Required, Chat, &[(GET, Read, 0), (POST, Send, 256 * KIB), (DELETE, Send, 256 * KIB)]),
        ("/api/chat/{id}/members/{member_id}",              Required, Chat, &[(PATCH, Send, 16 * KIB)]),
        ("/api/chat/{id}/messages",                         Required, Chat, &[(GET, Read, 0), (POST, Send, 256 * KIB)]),
        ("/api/chat/{id}/messages/{message_id}",            Required, Chat, &[(PATCH, Send, 256 * KIB), (DELETE, Send, 16 * KIB)]),
        ("/api/chat/{id}/messages/{message_id}/history",    Required, Chat, &[(GET, Read, 0)]),
        ("/api/chat/{id}/read",                             Required, Chat, &[(PUT, Send, 16 * KIB)]),
        ("/api/chat/{id}/typing",                           Required, Notify, &[(POST, Send, 16 * KIB)]),
        ("/api/chat/{id}/presence",                         Required, Notify, &[(GET, Read, 0)]),
        ("/api/presence",                                   Required, Notify, &[(PUT, Send, 16 * KIB)]),
        ("/api/search/messages",                            Required, Indexer, &[(GET, Search, 0)]),
        ("/events",                                         Ticket,   Notify, &[(GET, Stream, 0)]),
        ("/events/ticket",                                  Required, Notify, &[(POST, Stream, 16 * KIB)]),
        ("/openapi.json",                                   Public,   Chat, &[(GET, Read, 0)]),
        ("/docs",                                           Public,   Chat, &[(GET, Read, 0)]),
        ("/docs/{file}",                                    Public,   Chat, &[(GET, Read, 0)]),
        ("/.well-known/jwks.json",                          Public,   Chat, &[(GET, Read, 0)]),
    ]
};

/// Every path that is not ours, where somebody serves a web client.
const WEB: Route = Route {
    method: Method::GET,
    template: "/{page}",
    target: Target::Upstream(Group::Web),
    access: Access::Public,
    class: Class::Read,
    body_bytes_max: 0,
};

/// Routes chosen by configuration: templates, or their beginnings before a `*`.
#[derive(Debug, Clone, Default)]
pub struct RoutePatterns {
    exact: Vec<String>,
    beginnings: Vec<String>,
}

impl RoutePatterns {
    /// The patterns of a setting.
    pub fn new(patterns: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let mut all = Self::default();
        for pattern in patterns {
            match pattern.as_ref().strip_suffix('*') {
                Some(beginning) => all.beginnings.push(beginning.to_owned()),
                None => all.exact.push(pattern.as_ref().to_owned()),
            }
        }
        all
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.beginnings.is_empty()
    }

    /// Whether a template is among them.
    pub fn contain(&self, template: &str) -> bool {
        self.exact.iter().any(|exact| exact == template)
            || self.beginnings.iter().any(|beginning| template.starts_with(beginning))
    }

    /// Whether there is a route they stand for.
    pub fn match_any(&self) -> bool {
        let own = ["/health", "/health/simple", WEB.template];
        TABLE
            .iter()
            .map(|(template, ..)| *template)
            .chain(own)
            .any(|template| self.contain(template))
    }
}

/// What a path and method lead to.
#[derive(Debug)]
pub enum Lookup<'a> {
    Found(&'a Route),
    /// The path exists with other methods, listed as `Allow` wants them.
    WrongMethod {
        template: &'static str,
        allow: &'a str,
    },
    Unknown,
}

#[derive(Debug, Default)]
struct Node {
    literals: Vec<(&'static str, Node)>,
    parameter: Option<Box<Node>>,
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    template: &'static str,
    routes: Vec<Route>,
    allow: String,
}

/// The compiled route table.
#[derive(Debug)]
pub struct Routes {
    root: Node,
    web: End,
}

impl Default for Routes {
    fn default() -> Self {
        Self::new()
    }
}

impl Routes {
    /// Compiles the table.
    pub fn new() -> Self {
        let mut root = Node::default();
        for &(template, access, group, methods) in TABLE {
            let routes = methods.iter().map(|(method, class, body_bytes_max)| Route {
                method: method.clone(),
                template,
                target: Target::Upstream(group),
                access,
                class: *class,
                body_bytes_max: *body_bytes_max,
            });
            root.insert(template, routes.collect());
        }
        for (template, target) in [("/health", Target::Health), ("/health/simple", Target::Alive)] {
            root.insert(
                template,
                vec![Route {
                    method: Method::GET,
                    template,
                    target,
                    access: Access::Public,
                    class: Class::Read,
                    body_bytes_max: 0,
                }],
            );
        }
        let web = End::new(WEB.template, vec![WEB]);
        Self { root, web }
    }

    /// Every route, with `web` those of a web client too, for the admin listener.
    pub fn describe(&self, web: bool) -> Vec<Value> {
        let mut all = Vec::new();
        let mut stack = vec![&self.root];
        while let Some(node) = stack.pop() {
            stack.extend(node.literals.iter().map(|(_, next)| next));
            stack.extend(node.parameter.as_deref());
            all.extend(node.end.iter().flat_map(|end| &end.routes));
        }
        all.extend(self.web.routes.iter().filter(|_| web));
        all.sort_by_key(|route| (route.template, route.method.as_str()));
        all.into_iter().map(Route::describe).collect()
    }

    /// Finds the route of a path that [`crate::path::check`] has let through. `HEAD` goes where `GET` goes; with `web`, a path that is
    /// not ours is a page of the web client.
    pub fn find(&self, method: &Method, path: &str, web: bool) -> Lookup<'_> {
        let end = path.strip_prefix('/').and_then(|rest| self.root.walk(rest));
        let page = || (web && !self.is_ours(path)).then_some(&self.web);
        let Some(end) = end.or_else(page) else {
            return Lookup::Unknown;
        };
        let wanted = if *method == Method::HEAD { &Method::GET } else { method };
        match end.routes.iter().find(|route| route.method == *wanted) {
            Some(route) => Lookup::Found(route),
            None => Lookup::WrongMethod {
                template: end.template,
                allow: &end.allow,
            },
        }
    }
}

impl Routes {
    /// Whether a path begins as those of the table do. Others than ours may be well known too.
    fn is_ours(&self, path: &str) -> bool {
        let first = path.split('/').nth(1).unwrap_or_default();
        first != ".well-known" && self.root.literals.iter().any(|(name, _)| *name == first)
    }
}

impl End {
    fn new(template: &'static str, routes: Vec<Route>) -> Self {
        let mut allow: Vec<&str> = routes.iter().map(|route| route.method.as_str()).collect();
        if allow.contains(&"GET") {
            allow.push("HEAD");
        }
        allow.push("OPTIONS");
        Self {
            template,
            allow: allow.join(", "),
            routes,
        }
    }
}

impl Node {
    fn insert(&mut self, template: &'static str, routes: Vec<Route>) {
        let mut node = self;
        for segment in template.trim_start_matches('/').split('/') {
            node = if segment.starts_with('{') {
                node.parameter.get_or_insert_default()
            } else {
                let index = node
                    .literals
                    .iter()
                    .position(|(name, _)| *name == segment)
                    .unwrap_or_else(|| {
                        node.literals.push((segment, Self::default()));
                        node.literals.len() - 1
                    });
                &mut node.literals[index].1
            };
        }
        node.end = Some(End::new(template, routes));
    }

    fn walk(&self, path: &str) -> Option<&End> {
        let mut node = self;
        for segment in path.split('/') {
            let literal = node.literals.iter().find(|(name, _)| *name == segment);
            node = match literal {
                Some((_, next)) => next,
                None if segment.is_empty() => return None,
                None => node.parameter.as_deref()?,
            };
        }
        node.end.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: &Method, path: &str) -> Option<(&'static str, Target, Access, Class)> {
        match Routes::new().find(method, path, false) {
            Lookup::Found(route) => Some((route.template, route.target, route.access, route.class)),
            _ => None,
        }
    }

    #[test]
    fn routes_lead_where_the_table_says() {
        let chat = Target::Upstream(Group::Chat);
        assert_eq!(
            found(&Method::POST, "/api/chat/7/messages"),
            Some(("/api/chat/{id}/messages", chat, Access::Required, Class::Send))
        );
        assert_eq!(
            found(&Method::HEAD, "/api/chat/7/messages"),
            Some(("/api/chat/{id}/messages", chat, Access::Required, Class::Read))
        );
        assert_eq!(
            found(&Method::POST, "/api/chat/7/typing"),
            Some((
                "/api/chat/{id}/typing",
                Target::Upstream(Group::Notify),
                Access::Required,
                Class::Send
            ))
        );
        assert_eq!(
            found(&Method::GET, "/events"),
            Some((
                "/events",
                Target::Upstream(Group::Notify),
                Access::Ticket,
                Class::Stream
            ))
        );
        assert_eq!(
            found(&Method::GET, "/health"),
            Some(("/health", Target::Health, Access::Public, Class::Read))
        );
    }

    #[test]
    fn only_sign_in_documents_keys_and_health_are_public() {
        let routes = Routes::new();
        let mut public = Vec::new();
        let mut stack = vec![&routes.root];
        while let Some(node) = stack.pop() {
            stack.extend(node.literals.iter().map(|(_, next)| next));
            stack.extend(node.parameter.as_deref());
            if let Some(end) = &node.end {
                public.extend(
                    end.routes
                        .iter()
                        .filter(|r| r.access == Access::Public)
                        .map(|r| r.template),
                );
            }
        }
        public.sort_unstable();
        assert_eq!(
            public,
            [
                "/.well-known/jwks.json",
                "/api/refresh",
                "/api/signin",
                "/api/signup",
                "/docs",
                "/docs/{file}",
                "/health",
                "/health/simple",
                "/openapi.json"
            ]
        );
    }

    #[test]
    fn pages_are_what_is_not_ours_and_only_where_there_are_any() {
        let routes = Routes::new();
        for (path, page) in [
            ("/", true),
            ("/index.html", true),
            ("/rooms/7", true),
            ("/.well-known/security.txt", true),
            ("/apiary", true),
            ("/api", false),
            ("/api/", false),
            ("/api/secret", false),
            ("/events/x/y", false),
            ("/docs/a/b", false),
            ("/health/x", false),
        ] {
            let found = |web| matches!(routes.find(&Method::GET, path, web), Lookup::Found(route) if route.is_web());
            assert_eq!((found(true), found(false)), (page, false), "{path}");
        }
        match routes.find(&Method::POST, "/index.html", true) {
            Lookup::WrongMethod { allow, .. } => assert_eq!(allow, "GET, HEAD, OPTIONS"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(routes.find(&Method::GET, "/api/me", true), Lookup::Found(route) if !route.is_web()));
    }

    #[test]
    fn patterns_are_templates_or_their_beginnings() {
        let patterns = RoutePatterns::new(["/api/me", "/api/workspace*"]);
        for (template, contained) in [
            ("/api/me", true),
            ("/api/workspace", true),
            ("/api/workspace/invitations/{id}", true),
            ("/api/chat", false),
            ("/api/me/x", false),
        ] {
            assert_eq!(patterns.contain(template), contained, "{template}");
        }
        assert!(patterns.match_any() && !RoutePatterns::new(["/api/nothing"]).match_any());
        assert!(RoutePatterns::new(Vec::<String>::new()).is_empty());
    }

    #[test]
    fn unknown_paths_and_wrong_methods_are_told_apart() {
        let routes = Routes::new();
        for path in [
            "/",
            "/api",
            "/api/",
            "/api/chat/",
            "/api/chat//messages",
            "/metrics",
            "/ready",
            "/live",
            "/events/x/y",
            "/API/chat",
        ] {
            assert!(
                matches!(routes.find(&Method::GET, path, false), Lookup::Unknown),
                "{path}"
            );
        }
        match routes.find(&Method::PATCH, "/api/chat", false) {
            Lookup::WrongMethod { allow, .. } => assert_eq!(allow, "GET, POST, HEAD, OPTIONS"),
            other => panic!("{other:?}"),
        }
    }
}
