//! Several statements in one trip: a whole transaction is one call to the connection's thread.
//!
//! A trip to that thread costs as much as a dozen rows, so that transactions are written down first and then sent.
//! The statements' text is a key of the connection's statement cache: it must not vary with the data.

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Either, Row, Sqlite};

/// Statements and what is bound to their `?`, in order.
#[derive(Default)]
pub struct Script {
    text: String,
    arguments: SqliteArguments,
    statements: usize,
}

/// What a statement of a script did.
#[derive(Default)]
pub struct Answer {
    /// Rows changed.
    pub changed: u64,
    /// Rows returned.
    pub rows: Vec<SqliteRow>,
}

impl Script {
    /// A script that is one transaction, which takes the write lock at once.
    pub fn begin() -> Self {
        let mut script = Self::default();
        script.add("BEGIN IMMEDIATE");
        script
    }

    /// Adds a statement; bind its arguments next. Returns its number, to find its answer by.
    pub fn add(&mut self, statement: &str) -> usize {
        self.text.push_str(statement);
        self.text.push_str(";\n");
        self.statements += 1;
        self.statements - 1
    }

    /// Binds the next `?`.
    pub fn bind<'q, T: sqlx::Encode<'q, Sqlite> + sqlx::Type<Sqlite>>(&mut self, value: T) -> &mut Self {
        self.arguments.add(value).expect("integers, text and bytes always encode");
        self
    }

    /// Ends the transaction.
    pub fn commit(&mut self) {
        self.add("COMMIT");
    }

    /// Carries it out; an answer for each statement. Stops at the first that fails, leaving the transaction open.
    pub async fn run(self, connection: &mut SqliteConnection) -> Result<Vec<Answer>, sqlx::Error> {
        let mut answers = Vec::with_capacity(self.statements);
        let mut answer = Answer::default();
        let query = sqlx::query_with(AssertSqlSafe(self.text), self.arguments);
        #[expect(deprecated, reason = "several statements in one trip is the point, and each is ours")]
        let mut stream = query.fetch_many(&mut *connection);
        while let Some(step) = stream.try_next().await? {
            match step {
                Either::Right(row) => answer.rows.push(row),
                Either::Left(done) => {
                    answer.changed = done.rows_affected();
                    answers.push(std::mem::take(&mut answer));
                }
            }
        }
        Ok(answers)
    }

    /// Carries out a script that began a transaction, and takes everything back where something failed.
    pub async fn run_whole(mut self, connection: &mut SqliteConnection) -> Result<Vec<Answer>, sqlx::Error> {
        self.commit();
        let result = self.run(connection).await;
        if result.is_err() {
            rollback(connection).await;
        }
        result
    }
}

/// Takes an open transaction back; nothing where none is open.
pub async fn rollback(connection: &mut SqliteConnection) {
    // Fails only where no transaction is open (BEGIN itself failed, or SQLite rolled back by itself).
    let _ = sqlx::query("ROLLBACK").execute(connection).await;
}

/// An integer of a row.
pub fn int(row: &SqliteRow, column: usize) -> i64 {
    row.get_unchecked(column)
}

/// An integer of a row, where it is not null.
pub fn int_or_null(row: &SqliteRow, column: usize) -> Option<i64> {
    row.get_unchecked(column)
}

/// Text of a row.
pub fn text(row: &SqliteRow, column: usize) -> String {
    row.get_unchecked(column)
}

/// Text of a row, where it is not null.
pub fn text_or_null(row: &SqliteRow, column: usize) -> Option<String> {
    row.get_unchecked(column)
}

/// Bytes of a row; none where it is null.
pub fn bytes(row: &SqliteRow, column: usize) -> Option<&[u8]> {
    row.get_unchecked(column)
}

/// Numbers as a JSON array, for `json_each`.
pub fn json_list(numbers: impl IntoIterator<Item = i64>) -> String {
    let mut json = String::from("[");
    for number in numbers {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&number.to_string());
    }
    json.push(']');
    json
}
