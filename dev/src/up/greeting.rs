//! What is printed once everything runs.

use std::fmt::Write as _;
use std::time::Duration;

use dev::platform::{Platform, Service};
use dev::seed;

/// Address, a conversation to paste, and where things are.
pub(super) fn greeting(platform: &Platform, seeded: bool, took: Duration) -> String {
    let (url, ca) = (platform.url(), platform.ca().display().to_string());
    let mut text = format!(
        r#"
Fechatter is up at {url} after {seconds:.0} s. Ctrl-C stops all of it.
Certificate authority for clients: {ca}
Logs: {logs}

A first conversation; paste it into another terminal:

  fct() {{ curl -sS --cacert "{ca}" "$@"; }}; J='content-type: application/json'; P='"password":"correct horse battery"'
  get() {{ python3 -c "import json,sys;print(json.load(sys.stdin)$1)"; }}
  W="Team $RANDOM$RANDOM"; ADA=ada$RANDOM$RANDOM@example.org; BOB=bob$RANDOM$RANDOM@example.org; CY=cy$RANDOM$RANDOM@example.org
  A=$(fct {url}/api/signup -H "$J" -d "{{\"fullname\":\"Ada\",\"email\":\"$ADA\",$P,\"workspace\":\"$W\"}}" | get '["access_token"]')
  I=$(fct {url}/api/workspace/invitations -H "$J" -H "Authorization: Bearer $A" -d '{{"max_uses":2}}' | get '["token"]')
  B=$(fct {url}/api/signup -H "$J" -d "{{\"fullname\":\"Bob\",\"email\":\"$BOB\",$P,\"workspace\":\"$W\",\"invitation\":\"$I\"}}" | get '["access_token"]')
  C=$(fct {url}/api/signup -H "$J" -d "{{\"fullname\":\"Cy\",\"email\":\"$CY\",$P,\"workspace\":\"$W\",\"invitation\":\"$I\"}}" | get '["access_token"]')
  IDS=$(fct {url}/api/users -H "Authorization: Bearer $A" | get '["items"][1:]' | python3 -c "import ast,sys;print([u['id'] for u in ast.literal_eval(sys.stdin.read())])")
  G=$(fct {url}/api/chat -H "$J" -H "Authorization: Bearer $A" -d "{{\"kind\":\"group\",\"name\":\"Lunch\",\"member_ids\":$IDS}}" | get '["id"]')
  (fct -N --max-time 4 {url}/events -H "Authorization: Bearer $B" &) ; sleep 1
  fct {url}/api/chat/$G/messages -H "$J" -H "Authorization: Bearer $A" -H "Idempotency-Key: $RANDOM" -d '{{"content":"Shall we eat at noon?"}}'; echo
  sleep 1; fct "{url}/api/search/messages?q=noon" -H "Authorization: Bearer $B"; echo
"#,
        seconds = took.as_secs_f64(),
        logs = platform
            .log(Service::Gateway)
            .parent()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
    );
    if seeded {
        let _ = write!(
            text,
            "\nThe demo workspace \"{}\"; everybody's password is \"{}\":\n{}\n",
            seed::WORKSPACE,
            seed::PASSWORD,
            seed::logins()
        );
    }
    text
}
