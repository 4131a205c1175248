//! Every reason for which mapping dead-letters a record, once. The table in `docs/mappings.md` is checked against it.

macro_rules! codes {
    ($($variant:ident $code:literal $meaning:literal;)*) => {
        /// Why a raw record is dead-lettered.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The stable code, as on the dead letter and in the ledger.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $code,)* }
            }

            /// What it means, for the documentation.
            pub const fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning,)* }
            }
        }
    };
}

codes! {
    RecordEmpty "record.empty" "the record has no value, or only white space";
    RecordTooLarge "record.too_large" "the value is larger than 1 MiB";
    JsonNotUtf8 "json.not_utf8" "the value is not UTF-8 text";
    JsonMalformed "json.malformed" "the value is not one JSON document";
    JsonTooDeep "json.too_deep" "the document is nested deeper than 64 levels";
    JsonNotObject "json.not_object" "the document is not an object";
    CefMalformed "cef.malformed" "the value is not a CEF line";
    CsvMalformed "csv.malformed" "the value is not one CSV line with a field for every column of the mapping";
    MappingError "mapping.error" "the mapping's program failed on this event";
    MappingRejected "mapping.rejected" "the mapping's program refused this event";
    MappingBudget "mapping.budget" "the program ran more steps on this event than are allowed";
    MappingPanic "mapping.panic" "the program or a library below it panicked: a bug, please report it";
    MappingResult "mapping.result" "the program's result is neither signals nor ignored nor dead";
    SignalTooMany "signal.too_many" "the record gives more than 100 signals";
    SignalNoTime "signal.no_time" "neither the event nor its record has a usable time";
    SignalBadTime "signal.bad_time" "the event's time cannot be read, or lies outside 2000 to 2106";
    SignalTimeSentinel "signal.time_sentinel" "the event's time is a stand-in for never (year 1, 1601 or 1970)";
    SignalNoUser "signal.no_user" "nobody acted: no user, a placeholder or a machine account";
    SignalBadIndicator "signal.bad_indicator" "the indicator id is missing or not a snake_case word";
    SignalBadField "signal.bad_field" "a field of the signal has a wrong type, an unknown word or an unknown name";
    Unattributed "unattributed" "the person is not in the directory, and the name is not an address to fall back on";
}

impl Code {
    /// The lane of the dead-letter topic: records that lack only a person are kept apart from broken ones, because a
    /// later directory record makes them whole.
    pub const fn lane(self) -> &'static str {
        match self {
            Code::SignalNoUser | Code::Unattributed => "unattributed",
            _ => "rejected",
        }
    }
}
