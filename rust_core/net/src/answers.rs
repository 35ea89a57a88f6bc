//! The HTTP answers that need nobody's decision: constant, small, and the connection ends with them.
//!
//! Rule: nothing of the request is reflected. The hub writes the answers to upgrades; these are for sockets it never saw or has given away.

macro_rules! answer {
    ($status:literal, $headers:literal, $body:literal, $len:literal) => {
        concat!(
            "HTTP/1.1 ",
            $status,
            "\r\n",
            $headers,
            "Content-Type: application/json\r\nContent-Length: ",
            $len,
            "\r\nConnection: close\r\n\r\n",
            $body
        )
        .as_bytes()
    };
}

/// No slot or relay is free.
pub const CONNECTIONS: &[u8] =
    answer!("503 Service Unavailable", "Retry-After: 5\r\n", "{\"error\":\"max_connections\"}", "27");

pub const ADDRESS: &[u8] =
    answer!("429 Too Many Requests", "Retry-After: 5\r\n", "{\"error\":\"max_connections_per_address\"}", "39");

/// The HTTP app's socket does not answer.
pub const HTTP_APP: &[u8] = answer!("503 Service Unavailable", "Retry-After: 1\r\n", "{\"error\":\"http_app\"}", "20");

/// There is no HTTP app.
pub const NOT_FOUND: &[u8] = answer!("404 Not Found", "", "{\"error\":\"not_found\"}", "21");

/// What an upgrade is refused with: status, body, seconds to wait.
pub struct Refused {
    pub status: u16,
    pub body: &'static str,
    pub retry_after_s: u32,
}

pub const UPGRADE_CONNECTIONS: Refused =
    Refused { status: 503, body: "{\"error\":\"max_connections\"}", retry_after_s: 5 };
pub const UPGRADE_RATE: Refused = Refused { status: 503, body: "{\"error\":\"handshake_rate\"}", retry_after_s: 1 };
pub const UPGRADE_ADDRESS: Refused =
    Refused { status: 429, body: "{\"error\":\"max_connections_per_address\"}", retry_after_s: 5 };
pub const UPGRADE_USER: Refused =
    Refused { status: 429, body: "{\"error\":\"max_connections_per_user\"}", retry_after_s: 5 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_states_the_length_of_its_body_and_ends_the_connection() {
        for answer in [CONNECTIONS, ADDRESS, HTTP_APP, NOT_FOUND] {
            let text = std::str::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{text}");
            assert!(head.contains("Connection: close") && body.starts_with('{'), "{text}");
        }
    }
}
