//! The engine end to end: real sockets, real threads, and a small application in place of Python.

mod app;
mod client;

mod echo;
mod http;
mod limits;
mod pressure;
mod rooms;
mod tls;
mod told;
