// Package nbd serves block devices over the Network Block Device protocol.
//
// It speaks to a [Backend], which names and opens exports, and to a [Device],
// which is one open export; it knows nothing else of the project.
//
// A [Server] accepts connections on any number of listeners. Each connection
// goes through two phases:
//
//   - The handshake (handshake.go does the I/O, negotiate.go and meta.go decide):
//     fixed newstyle only. It is bounded in time, in options and in bytes,
//     because nobody is known yet. STARTTLS discards whatever was agreed before.
//   - The transmission (session.go): one goroutine, the reader, parses many
//     requests from one large buffer, executes them in line and sends their
//     replies together. A request that may block (FLUSH, FUA, large reads) keeps
//     the goroutine it is on, and another goroutine becomes the reader, so that
//     nothing waits behind it and the blocking request itself waits for nobody.
//
// Every rule on what a request may be is in one function, terms.validate, which
// runs before any memory is taken. The memory that requests in flight hold is
// bounded per connection and in all; a request that finds no room is carried out
// in pieces through the connection's own buffer, so that a client that is slow
// to read or write holds up itself alone.
//
// The specification is doc/proto.md of github.com/NetworkBlockDevice/nbd, with
// its EXTENDED_HEADERS extension; docs/PROTOCOL.md says what is done of it.
package nbd
