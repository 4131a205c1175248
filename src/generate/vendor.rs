//! The activity as the vendors report it, one JSON object per event. Shapes and field names are the vendors', reduced
//! to what bears on risk and a little of what does not; values are our own.

use std::fmt::Write;

use super::activity::{Act, Kind, Source, Target};
use super::delivery::{Delivery, deliveries};
use super::population::Population;
use super::prng::mix;
use super::{detail, signals};
use crate::domain::Timestamp;

/// The sources of raw events, as `raw.<source>` topics name them.
pub const SOURCES: [&str; 3] = ["m365-dlp", "google-workspace", "code42"];

/// One event as a collector hands it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEvent {
    /// One of [`SOURCES`].
    pub source: &'static str,
    /// When it happened.
    pub at: Timestamp,
    /// When it reached us; never before `at`.
    pub arrival: Timestamp,
    /// Record key: the person's canonical id, so that one person's events keep their order.
    pub key: String,
    /// The event: one line of JSON.
    pub json: String,
}

/// Every event in order of arrival, with noise, late, disordered and doubled ones.
pub fn events(population: &Population) -> impl Iterator<Item = RawEvent> + '_ {
    deliveries(population).map(|Delivery { arrival, act, .. }| event(population, &act, arrival))
}

/// The report of an act.
pub(super) fn event(population: &Population, act: &Act, arrival: Timestamp) -> RawEvent {
    RawEvent {
        source: act.kind.source().as_str(),
        at: act.at,
        arrival,
        key: detail::person(population, act).canonical_id.clone(),
        json: json(population, act),
    }
}

fn json(population: &Population, act: &Act) -> String {
    let mut out = String::with_capacity(1_536);
    let written = match act.kind.source() {
        Source::M365 => m365(population, act, &mut out),
        Source::GoogleWorkspace => google(population, act, &mut out),
        Source::Code42 => code42(population, act, &mut out),
    };
    written.expect("writing to a string cannot fail");
    out
}

/// `2026-01-05T09:30:00`: Microsoft's time, UTC by convention.
fn bare_time(at: Timestamp) -> String {
    let mut text = at.rfc3339();
    text.truncate("2026-01-05T09:30:00".len());
    text
}

fn m365(population: &Population, act: &Act, out: &mut String) -> std::fmt::Result {
    let (id, time) = (detail::event_id(act), bare_time(act.at));
    let organization = detail::uuid(mix(population.config().seed ^ 20));
    write!(out, r#"{{"CreationTime":"{time}","Id":"{id}","OrganizationId":"{organization}","Version":1,"#)?;
    match act.kind {
        Kind::DlpEmail | Kind::DlpEmailUndo => dlp_email(population, act, out),
        Kind::DlpCloud => dlp_cloud(population, act, out),
        Kind::ControlDisabled => control_disabled(population, act, out),
        _ => sharepoint(population, act, out),
    }
}

fn dlp_email(population: &Population, act: &Act, out: &mut String) -> std::fmt::Result {
    let operation = if act.kind == Kind::DlpEmail { "DlpRuleMatch" } else { "DlpRuleUndo" };
    let person = detail::person(population, act);
    let (from, to) = (detail::spelling(person, act), detail::recipient(population, act));
    let (file, bytes, sent) = (detail::file_name(act), act.bytes, bare_time(act.occurred_at()));
    let message = format!("<{:016x}@mail.{}>", act.id, population.config().company_domain);
    write!(
        out,
        r#""Operation":"{operation}","RecordType":13,"Workload":"Exchange","UserId":"DlpAgent","UserKey":"1153801116545789462","UserType":4,"IncidentId":"{}","ObjectId":"{message}","ExchangeMetaData":{{"BCC":[],"CC":[],"FileSize":{bytes},"From":"{from}","MessageID":"{message}","RecipientCount":1,"Sent":"{sent}","Subject":"{file}","To":["{to}"],"UniqueID":"{}"}},"#,
        detail::uuid(mix(act.id ^ 11)),
        detail::uuid(mix(act.id ^ 12)),
    )?;
    if act.overridden {
        out.push_str(r#""ExceptionInfo":{"Reason":"Override","Justification":"Needed to finish from home"},"#);
    }
    label(act, out);
    policy_details(act, out)
}

fn dlp_cloud(population: &Population, act: &Act, out: &mut String) -> std::fmt::Result {
    let person = detail::person(population, act);
    let (from, file, owner) = (detail::spelling(person, act), detail::file_name(act), &person.display_name);
    let (site, agent) = (personal_site(population, act), "DlpPolicyEventBasedAssistantOneDriveForBusiness");
    let (time, file_id) = (bare_time(act.at), detail::uuid(mix(act.id ^ 13)));
    write!(
        out,
        r#""Operation":"DLPRuleMatch","RecordType":11,"Workload":"OneDrive","UserId":"{agent}","UserKey":"{agent}","UserType":4,"IncidentId":"{}","ObjectId":"{file_id}","SharePointMetaData":{{"FileName":"{file}","FileOwner":"{owner}","FilePathUrl":"{site}/Documents/{file}","From":"{from}","ItemCreationTime":"{time}","ItemLastModifiedTime":"{time}","SiteCollectionUrl":"{site}","UniqueID":"{file_id}"}},"#,
        detail::uuid(mix(act.id ^ 11)),
    )?;
    label(act, out);
    policy_details(act, out)
}

fn label(act: &Act, out: &mut String) {
    if act.confidential {
        out.push_str(r#""SensitivityLabelIds":["confidential"],"#);
    }
}

/// Ends the object of a DLP record.
fn policy_details(act: &Act, out: &mut String) -> std::fmt::Result {
    let finding = detail::finding(act);
    let (name, count) = (finding.name, finding.count);
    let severity = signals::severity(act);
    write!(
        out,
        r#""PolicyDetails":[{{"PolicyId":"{}","PolicyName":"Financial data","Rules":[{{"RuleId":"{}","RuleName":"{severity} volume of financial data","RuleMode":"Enable","Severity":"{severity}","Actions":["NotifyUser"],"ActionParameters":[],"ConditionsMatched":{{"SensitiveInformation":[{{"SensitiveType":"{}","SensitiveInformationTypeName":"{name}","Confidence":{},"Count":{count},"UniqueCount":{count},"Location":"Attachment"}}]}}}}]}}],"SensitiveInfoDetectionIsIncluded":false}}"#,
        detail::uuid(mix(121)),
        detail::uuid(mix(122)),
        finding.type_id,
        finding.confidence / 10,
    )
}

fn control_disabled(population: &Population, act: &Act, out: &mut String) -> std::fmt::Result {
    let person = detail::person(population, act);
    let (user, ip) = (detail::spelling(person, act), detail::ip(act));
    write!(
        out,
        r#""Operation":"Set-AdminAuditLogConfig","RecordType":1,"Workload":"Exchange","UserId":"{user}","UserKey":"{}","UserType":2,"ClientIP":"{ip}:41822","ResultStatus":"True","ObjectId":"Admin Audit Log Settings","ExternalAccess":false,"Parameters":[{{"Name":"UnifiedAuditLogIngestionEnabled","Value":"False"}},{{"Name":"Confirm","Value":"False"}}]}}"#,
        person.profile_id,
    )
}

fn sharepoint(population: &Population, act: &Act, out: &mut String) -> std::fmt::Result {
    let operation = if act.kind == Kind::AnonymousLink { "AnonymousLinkCreated" } else { "FileAccessed" };
    let record_type = if act.kind == Kind::AnonymousLink { 14 } else { 6 };
    let person = detail::person(population, act);
    let (user, ip, file) = (detail::spelling(person, act), detail::ip(act), detail::file_name(act));
    let (site, extension) = (personal_site(population, act), detail::extension(act));
    if act.confidential {
        out.push_str(r#""SensitivityLabelId":"confidential","#);
    }
    write!(
        out,
        r#""Operation":"{operation}","RecordType":{record_type},"Workload":"OneDrive","UserId":"{user}","UserKey":"i:0h.f|membership|{}@live.com","UserType":0,"ClientIP":"{ip}","EventSource":"SharePoint","ItemType":"File","ObjectId":"{site}/Documents/{file}","SiteUrl":"{site}","SourceFileExtension":"{extension}","SourceFileName":"{file}","SourceRelativeUrl":"Documents/{file}","ListItemUniqueId":"{}","UserAgent":"Mozilla/5.0 (Windows NT 10.0; Win64; x64)"}}"#,
        person.profile_id,
        detail::file_id(act),
    )
}

fn personal_site(population: &Population, act: &Act) -> String {
    let person = detail::person(population, act);
    format!("https://example-my.sharepoint.com/personal/{}", person.canonical_id.replace(['.', '@'], "_"))
}

fn google(population: &Population, act: &Act, out: &mut String) -> std::fmt::Result {
    let person = detail::person(population, act);
    let (time, id, ip) = (act.at.rfc3339(), detail::event_id(act), detail::ip(act));
    let application = if matches!(act.kind, Kind::Login | Kind::SuspiciousLogin) { "login" } else { "drive" };
    write!(
        out,
        r#"{{"kind":"admin#reports#activity","id":{{"time":"{time}","uniqueQualifier":"{id}","applicationName":"{application}","customerId":"C0{:07x}"}},"etag":"\"{:016x}\"","actor":{{"callerType":"USER","#,
        population.config().seed & 0xfff_ffff,
        act.id,
    )?;
    // One event in 64 names the person by number only.
    if !act.id.is_multiple_of(64) {
        write!(out, r#""email":"{}","#, detail::spelling(person, act))?;
    }
    write!(out, r#""profileId":"{}"}},"ipAddress":"{ip}","events":[{{"#, person.profile_id)?;
    if application == "login" { login(act, out) } else { drive(population, act, out) }
}

fn login(act: &Act, out: &mut String) -> std::fmt::Result {
    let suspicious = act.kind == Kind::SuspiciousLogin;
    write!(
        out,
        r#""type":"login","name":"login_success","parameters":[{{"name":"login_type","value":"google_password"}},{{"name":"login_challenge_method","multiValue":["password"]}},{{"name":"is_suspicious","boolValue":{suspicious}}}]}}]}}"#
    )
}

fn drive(population: &Population, act: &Act, out: &mut String) -> std::fmt::Result {
    let (group, name) = match act.kind {
        Kind::DriveDownload => ("access", "download"),
        Kind::DriveDelete => ("access", "delete"),
        Kind::DriveEdit => ("access", "edit"),
        Kind::DriveShareExternal | Kind::DriveShareInternal => ("acl_change", "change_user_access"),
        Kind::DrivePublicLink => ("acl_change", "change_document_visibility"),
        _ => ("access", "view"),
    };
    write!(out, r#""type":"{group}","name":"{name}","parameters":[{{"name":"primary_event","boolValue":true}},"#)?;
    let visibility = match act.kind {
        Kind::DriveShareExternal | Kind::DriveShareInternal => {
            let external = act.kind == Kind::DriveShareExternal;
            let (change, visibility) =
                if external { ("external", "shared_externally") } else { ("none", "shared_internally") };
            write!(
                out,
                r#"{{"name":"visibility_change","value":"{change}"}},{{"name":"target_user","value":"{}"}},{{"name":"old_value","multiValue":["none"]}},{{"name":"new_value","multiValue":["can_view"]}},"#,
                detail::recipient(population, act),
            )?;
            visibility
        }
        Kind::DrivePublicLink => {
            out.push_str(r#"{"name":"visibility_change","value":"external"},{"name":"target_domain","value":"all"},{"name":"old_value","multiValue":["private"]},{"name":"new_value","multiValue":["people_with_link"]},"#);
            "people_with_link"
        }
        _ => "shared_internally",
    };
    let (file, file_id) = (detail::file_name(act), detail::file_id(act));
    let owner = &detail::person(population, act).canonical_id;
    write!(
        out,
        r#"{{"name":"billable","boolValue":true}},{{"name":"doc_id","value":"{file_id}"}},{{"name":"doc_type","value":"document"}},{{"name":"is_encrypted","boolValue":false}},{{"name":"doc_title","value":"{file}"}},{{"name":"visibility","value":"{visibility}"}},{{"name":"actor_is_collaborator_account","boolValue":false}},{{"name":"owner","value":"{owner}"}},{{"name":"owner_is_shared_drive","boolValue":false}}]}}]}}"#
    )
}

/// What differs between Code42's actions: the action, the destination's category and name, and the program. It has no
/// action of its own for an archive or a clone: the file's category and the repository tell.
fn code42_action(kind: Kind) -> (&'static str, &'static str, &'static str, &'static str) {
    let explorer = r"C:\\Windows\\explorer.exe";
    match kind {
        Kind::RemovableMedia => ("removable-media-created", "Device", "Removable Media", explorer),
        Kind::BrowserUpload => {
            ("application-read", "Cloud Storage", "Browser upload", r"C:\\Program Files\\Edge\\msedge.exe")
        }
        Kind::AppUpload => ("sync-app-created", "Cloud Storage", "Sync client", r"C:\\Program Files\\Sync\\sync.exe"),
        Kind::Mail => ("file-emailed", "Email", "Email", ""),
        Kind::Print => ("file-printed", "Device", "Printer", r"C:\\Windows\\System32\\spoolsv.exe"),
        Kind::ReportDownload => ("file-downloaded", "Device", "Salesforce report", ""),
        Kind::CodeClone => ("file-downloaded", "Device", "Source code", r"C:\\Program Files\\Git\\git.exe"),
        Kind::Archived => ("file-created", "Device", "", r"C:\\Program Files\\7-Zip\\7z.exe"),
        Kind::Deleted | Kind::LogDeleted => ("file-deleted", "", "", explorer),
        _ => ("file-created", "", "", explorer),
    }
}

fn code42(population: &Population, act: &Act, out: &mut String) -> std::fmt::Result {
    let person = detail::person(population, act);
    let (action, category, name, program) = code42_action(act.kind);
    let (time, id, email) = (act.at.rfc3339(), detail::event_id(act), detail::spelling(person, act));
    let (device, ip, inserted) = (&person.device, detail::ip(act), act.at.plus_ms(15_000).rfc3339());
    let observer = match act.kind {
        Kind::Mail => "Office365",
        Kind::ReportDownload => "Salesforce",
        _ => "Endpoint",
    };
    write!(
        out,
        r#"{{"@timestamp":"{time}","event":{{"id":"{id}","inserted":"{inserted}","action":"{action}","observer":"{observer}","shareType":[],"ingested":"{inserted}","relatedEvents":[]}},"user":{{"email":"{email}","id":"{}","deviceUid":"{device}"}},"#,
        person.profile_id,
    )?;
    code42_file(act, &person.login, out)?;
    write!(
        out,
        r#""source":{{"category":"Device","name":"{device}","domain":null,"ip":"{ip}","privateIp":["127.0.0.1"],"operatingSystem":"Windows 11"}},"destination":{{"category":{},"name":{},"#,
        text_or_null(category),
        text_or_null(name),
    )?;
    code42_destination(population, act, out)?;
    write!(out, r#""process":{{"executable":{},"owner":"{}"}},"#, text_or_null(program), person.login)?;
    code42_end(act, out)
}

fn text_or_null(text: &str) -> String {
    if text.is_empty() { "null".to_owned() } else { format!("\"{text}\"") }
}

fn code42_file(act: &Act, login: &str, out: &mut String) -> std::fmt::Result {
    let (file, bytes, file_id) = (detail::file_name(act), act.bytes, detail::file_id(act));
    let directory = match act.kind {
        Kind::LogDeleted => "C:/Windows/System32/winevt/Logs/".to_owned(),
        _ => format!("C:/Users/{login}/Documents/"),
    };
    let category = match detail::extension(act) {
        "zip" => "Archive",
        "git" => "SourceCode",
        "xlsx" | "csv" => "Spreadsheet",
        "png" => "Image",
        "pdf" => "Pdf",
        "pptx" => "Presentation",
        "evtx" => "Uncategorized",
        _ => "Document",
    };
    let classifications = match act.confidential {
        true => r#"[{"vendor":"MICROSOFT INFORMATION PROTECTION","value":"Confidential"}]"#,
        false => "[]",
    };
    write!(
        out,
        r#""file":{{"name":"{file}","directory":"{directory}","category":"{category}","sizeInBytes":{bytes},"owner":"{login}","hash":{{"md5":"{:016x}{file_id}","sha256":null,"md5Error":null}},"id":"{file_id}","url":null,"classifications":{classifications}}},"#,
        mix(act.id ^ 14),
    )
}

fn code42_destination(population: &Population, act: &Act, out: &mut String) -> std::fmt::Result {
    let (mut domain, mut recipients, mut printer, mut serial) = ("[]".to_owned(), "null".to_owned(), "null", None);
    match act.kind {
        Kind::RemovableMedia => serial = Some(detail::stick(act)),
        Kind::BrowserUpload | Kind::AppUpload => {
            domain = format!("[\"{}\"]", detail::upload_domain(population, act));
        }
        Kind::Mail => recipients = format!("[\"{}\"]", detail::recipient(population, act)),
        Kind::Print => printer = "\"PRN-01\"",
        _ => {}
    }
    let (bus, serial) = match serial {
        Some(serial) => ("\"USB\"", format!("\"{serial}\"")),
        None => ("null", "null".to_owned()),
    };
    write!(
        out,
        r#""user":{{"email":[]}},"printerName":{printer},"removableMedia":{{"vendor":null,"name":null,"serialNumber":{serial},"capacity":null,"busType":{bus}}},"email":{{"recipients":{recipients},"subject":null}},"tabs":[],"accountName":null,"domains":{domain}}},"#
    )
}

/// Report, repository and the vendor's own opinion end the object.
fn code42_end(act: &Act, out: &mut String) -> std::fmt::Result {
    match act.kind {
        Kind::ReportDownload => write!(
            out,
            r#""report":{{"id":"00O{}","name":"Accounts and contacts","count":{},"type":"REPORT_TYPE_SAVED"}},"#,
            detail::file_id(act),
            1 + act.bytes / 500,
        )?,
        _ => out.push_str(r#""report":{"id":null,"name":null,"count":null,"type":null},"#),
    }
    match act.kind {
        Kind::CodeClone => {
            write!(out, r#""git":{{"repositoryUri":"git@code.internal:{}"}},"#, detail::file_name(act))?;
        }
        _ => out.push_str(r#""git":{"repositoryUri":null},"#),
    }
    let trusted = matches!(act.target, Target::Internal | Target::ItStick);
    let (score, severity) = if trusted { (0, "NO_RISK_INDICATED") } else { (3, "LOW") };
    write!(out, r#""risk":{{"score":{score},"severity":"{severity}","indicators":[],"trusted":{trusted}}}}}"#)
}
