//! Answers direct reads of a stream as a replica does that is behind its leader: it has nothing yet. A server alone is never
//! behind, and of a cluster's nobody could say when; so this speaks the protocol itself, where the stream's server is told not to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// What such a replica says.
const NOT_FOUND: &str = "NATS/1.0 404 Message Not Found\r\n\r\n";

/// Answers everything that is asked by `subject`, until the server ends.
pub fn answer(port: u16, subject: &str) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the server");
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let begin = format!("CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB {subject} 1\r\nPING\r\n");
    stream.write_all(begin.as_bytes()).expect("a subscription");
    let mut line = String::new();
    while !line.starts_with("PONG") {
        line.clear();
        assert!(reader.read_line(&mut line).expect("the server") > 0, "it closed");
    }
    std::thread::spawn(move || {
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["PING"] => stream.write_all(b"PONG\r\n").expect("the server"),
                // MSG subject sid reply-to bytes
                ["MSG", _, _, reply, bytes] => {
                    let bytes: usize = bytes.parse().expect("a number");
                    let mut payload = vec![0; bytes + 2];
                    reader.read_exact(&mut payload).expect("the payload");
                    let length = NOT_FOUND.len();
                    let text = format!("HPUB {reply} {length} {length}\r\n{NOT_FOUND}\r\n");
                    stream.write_all(text.as_bytes()).expect("the server");
                }
                _ => panic!("unexpected: {line}"),
            }
        }
    });
}
