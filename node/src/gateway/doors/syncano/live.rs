//! The settings that a reload replaces: instances with their keys, accounts, and rates.
//!
//! Everything is built before it replaces the active settings, so a missing file or variable
//! changes nothing. Requests keep the settings with which they began.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    Fixed,
    application::Application,
    body::required,
    failure::Failure,
    instance::Instance,
    keys::Login,
    settings::{AccountSettings, Settings},
    throttle::Throttle,
};
use crate::gateway::{clock, values::secret};

/// Attempts to log in per second and address. The original lets as many requests without
/// a key pass.
const LOGINS: u32 = 10;

/// The settings in force.
pub(super) struct Live {
    pub(super) instances: BTreeMap<String, Instance>,
    pub(super) accounts: Accounts,
    pub(super) poll_timeout: Duration,
    pub(super) polls: Throttle,
    pub(super) requests: Throttle,
    /// The refused polls of each address.
    pub(super) refusals: Throttle,
    pub(super) logins: Throttle,
}

impl Live {
    /// Reads the keys and passwords from their files and variables. An instance whose
    /// namespace is not served is left out until a restart. `before` are the settings
    /// that these replace.
    pub(super) fn new(
        settings: &Settings,
        fixed: &Fixed,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let now = clock::unix_millis();
        let mut instances = BTreeMap::new();
        for (name, of_instance) in &settings.instances {
            let Some(namespace) = fixed.namespaces.get(name) else {
                continue;
            };
            let before = before.and_then(|before| before.instances.get(name));
            let problem = |problem| format!("doors.syncano.instances.{name}: {problem}");
            let namespace = namespace.to_string();
            let instance = Instance::new(name, namespace, of_instance, &fixed.store, now);
            let mut instance = instance.map_err(problem)?;
            if let Some(before) = before {
                instance.keep_times(before);
            }
            if let Some(hook) = &of_instance.hook {
                let known = before.and_then(|before| before.application.as_ref());
                let application = Application::new(name, hook, &fixed.hooks, known);
                instance.application = Some(application.map_err(problem)?);
            }
            instances.insert(name.clone(), instance);
        }
        Ok(Self {
            accounts: Accounts::new(&settings.accounts, &instances)?,
            instances,
            poll_timeout: settings.poll_timeout.0,
            // A reload resets the counts, which permits at most the requests of one more second.
            polls: Throttle::new(settings.polls_per_second),
            requests: Throttle::new(settings.requests_per_second),
            refusals: Throttle::new(settings.refused_polls),
            logins: Throttle::new(LOGINS),
        })
    }
}

/// The people who get an account key for their password.
pub(super) struct Accounts(HashMap<String, Login>);

impl Accounts {
    /// The key must be that of an account in some instance: another one would be
    /// refused at the first call after the login.
    fn new(
        settings: &[AccountSettings],
        instances: &BTreeMap<String, Instance>,
    ) -> Result<Self, String> {
        let mut all = HashMap::new();
        for account in settings {
            let problem = |problem| format!("doors.syncano.accounts, {}: {problem}", account.email);
            let key = secret("key", account.key_file.as_ref(), account.key_env.as_ref());
            let password = secret(
                "password",
                account.password_file.as_ref(),
                account.password_env.as_ref(),
            );
            let (key, password) = (key.map_err(problem)?, password.map_err(problem)?);
            let Some(login) = Login::new(account.id, key, password) else {
                return Err(problem("no key or no password".to_owned()));
            };
            let mut instances = instances.values();
            if !instances.any(|instance| instance.keys.is_account(&login.key)) {
                let text = "no instance has this key with the kind account".to_owned();
                return Err(problem(text));
            }
            all.insert(account.email.to_lowercase(), login);
        }
        Ok(Self(all))
    }

    /// The account of this email and password, with its key.
    pub(super) fn log_in(&self, fields: &Map<String, Value>) -> Result<Value, Failure> {
        let (email, password) = (required(fields, "email")?, required(fields, "password")?);
        let login = self.0.get(&email.to_lowercase());
        let login = login.filter(|login| login.has_password(password));
        // The same text for both, so that an attacker cannot find out which emails have an account.
        let wrong = "Invalid email or password.";
        let login = login.ok_or_else(|| Failure::detail(StatusCode::UNAUTHORIZED, wrong))?;
        Ok(json!({ "id": login.id, "email": email, "account_key": login.key }))
    }
}
