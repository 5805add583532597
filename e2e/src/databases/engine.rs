//! What differs between the databases: how a client is started, and the words for the same things.
//!
//! Each has three tables: `cuts` takes a row for each transaction, `counts` a counter for each writer, `pages` rows that are written over and over. A
//! transaction touches all three, so that half of one shows.

use serde::Serialize;

use crate::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    Postgres,
    Mariadb,
    Sqlite,
}

/// Rows of `pages` that one client writes over and over.
const SLOTS: u64 = 24;

impl Engine {
    pub const ALL: [Engine; 3] = [Engine::Postgres, Engine::Mariadb, Engine::Sqlite];

    pub fn name(self) -> &'static str {
        match self {
            Engine::Postgres => "postgres",
            Engine::Mariadb => "mariadb",
            Engine::Sqlite => "sqlite",
        }
    }

    pub fn named(name: &str) -> Option<Engine> {
        Engine::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// Clients that write at once.
    pub fn clients(self) -> u64 {
        match self {
            Engine::Postgres | Engine::Mariadb => 2,
            Engine::Sqlite => 3,
        }
    }

    /// A shell command that reads statements from its input, answers each at once, and ends at the first error.
    pub fn client(self) -> &'static str {
        match self {
            Engine::Postgres => "runuser -u postgres -- psql -X -q -A -t -v ON_ERROR_STOP=1",
            Engine::Mariadb => "mariadb --batch --skip-column-names --unbuffered",
            // Its output would wait for a full buffer. A write waits for the other writers.
            Engine::Sqlite => "mkdir -p /srv/sqlite && stdbuf -oL sqlite3 -batch -bail -cmd '.timeout 120000' /srv/sqlite/witness.db",
        }
    }

    /// Makes the tables where they are missing.
    pub fn tables(self) -> String {
        let before = match self {
            Engine::Postgres => "set client_min_messages = warning;\n",
            Engine::Mariadb => "create database if not exists lab; use lab;\n",
            Engine::Sqlite => "pragma journal_mode = wal;\n",
        };
        format!(
            "{before}create table if not exists cuts (writer bigint, id bigint, filler text, primary key (writer, id));\n\
             create table if not exists counts (writer bigint primary key, n bigint not null);\n\
             create table if not exists pages (slot bigint primary key, filler text);\n"
        )
    }

    /// What a client says first.
    pub fn opening(self, writer: u64) -> String {
        let before = match self {
            Engine::Postgres => "",
            Engine::Mariadb => "use lab;\n",
            Engine::Sqlite => "pragma synchronous = full;\n",
        };
        format!("{before}insert into counts values ({writer}, 0);\n")
    }

    /// A whole transaction, and then its number as the answer.
    pub fn transaction(self, writer: u64, id: u64) -> String {
        let mut random = Random(writer << 32 | id);
        let words = 8 + random.below(300);
        let filler: String = (0..words).map(|_| format!("{:016x}", random.number())).collect();
        let slot = writer * SLOTS + random.below(SLOTS);
        let begin = if self == Engine::Sqlite { "begin immediate" } else { "begin" };
        let page = match self {
            Engine::Postgres => {
                format!("insert into pages values ({slot}, '{filler}') on conflict (slot) do update set filler = excluded.filler")
            }
            Engine::Mariadb | Engine::Sqlite => format!("replace into pages values ({slot}, '{filler}')"),
        };
        let answer = if self == Engine::Postgres { format!("\\echo {id}") } else { format!("select {id};") };
        format!(
            "{begin}; insert into cuts values ({writer}, {id}, '{filler}'); update counts set n = n + 1 where writer = {writer}; {page}; commit;\n{answer}\n"
        )
    }

    /// Asks for each writer's rows: how many, the lowest, the highest, and the writer's counter. Rows without a counter come as writer 999999.
    pub fn state(self) -> String {
        let (cuts, counts) = if self == Engine::Mariadb { ("lab.cuts", "lab.counts") } else { ("cuts", "counts") };
        format!(
            "select c.writer, count(x.id), coalesce(min(x.id), 0), coalesce(max(x.id), 0), c.n from {counts} c left join {cuts} x on x.writer = c.writer \
             group by c.writer, c.n union all select 999999, count(*), 0, 0, 0 from {cuts} where writer not in (select writer from {counts}) \
             having count(*) > 0;"
        )
    }
}
