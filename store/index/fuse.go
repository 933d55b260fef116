package index

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
)

// fuse ends all writing at the first failure that leaves it open what is durable. Pebble is written on the assumption that the
// process ends then: it calls Logger.Fatalf, or panics, in places with locks held and with mutexes that a deferred function
// unlocks a second time, which no recover survives. We want reads to go on and the pool to tell its clients. So such a
// failure never gets as far as Pebble. fuseFS meets it, blows the fuse, and reports success; from that
// moment on nothing is written any more, so that the files stay as a crash at that instant would leave them, and Pebble's state in
// memory stays whole. The truth is told by Commit, which asks the fuse after Pebble:
//
//   - a log, a MANIFEST, a marker, a folder: a failed write or sync blows the fuse, and writes to a void from then on. In
//     particular nothing follows a MANIFEST record that may or may not be there: deltas would be merged twice.
//   - a table: the failure is returned. Pebble drops the table and makes it again from what it still has; after a
//     blown fuse that waits until Close.
//
// What is left for Fatalf are violated invariants of Pebble itself. There the fuse blows too, and Fatalf does not
// return: on a goroutine that came in through this package it panics with a private value that catch turns into that call's error;
// on one of Pebble's own it ends the goroutine with Goexit, so that deferred functions unlock what it held and its slot stays
// taken. Both leave Pebble unable to Close: it is stuck, and Index.Close leaves it behind.
type fuse struct {
	blown chan struct{} // closed when writing ended
	stuck chan struct{} // closed when a goroutine did not return to Pebble

	mu      sync.Mutex
	report  func(error)
	failure error // ErrDead and its cause
	cause   error
}

// fatal is what Fatalf panics with.
type fatal struct{ err error }

func newFuse() *fuse {
	return &fuse{blown: make(chan struct{}), stuck: make(chan struct{})}
}

// arm says who hears of a failure from now on, or returns the one that was before.
func (f *fuse) arm(report func(error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report = report
	return f.cause
}

// err returns the failure, as ErrDead, or nil.
func (f *fuse) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failure
}

func (f *fuse) isBlown() bool { return isClosed(f.blown) }
func (f *fuse) isStuck() bool { return isClosed(f.stuck) }

// blow ends all writing; the first cause is kept and reported.
func (f *fuse) blow(cause error) error {
	f.mu.Lock()
	first := f.failure == nil
	if first {
		f.failure = fmt.Errorf("%w: %w", ErrDead, cause)
		f.cause = cause
		close(f.blown)
	}
	err, report := f.failure, f.report
	f.mu.Unlock()
	if first && report != nil {
		report(err)
	}
	return err
}

func (f *fuse) setStuck() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !isClosed(f.stuck) {
		close(f.stuck)
	}
}

// catch is deferred by every function that calls Pebble: it turns the panic of Fatalf into an error.
func (f *fuse) catch(err *error) {
	switch r := recover().(type) {
	case nil:
	case fatal:
		*err = r.err
	default:
		panic(r)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// logger is Pebble's logger.
type logger struct{ x *Index }

func (l *logger) Infof(string, ...any) {} // what went well

func (l *logger) Errorf(format string, args ...any) { l.x.logf(format, args...) }

func (l *logger) Fatalf(format string, args ...any) {
	err := l.x.fuse.blow(fmt.Errorf(format, args...))
	l.x.fuse.setStuck()
	if calledByUs() {
		panic(fatal{err})
	}
	runtime.Goexit()
}

// calledByUs says whether a function of this package, other than the logger, is on the stack: then one of them has
// deferred catch.
func calledByUs() bool {
	pcs := make([]uintptr, 128)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	for {
		frame, more := frames.Next()
		if rest, ok := strings.CutPrefix(frame.Function, packagePath); ok &&
			!strings.HasPrefix(rest, ".(*logger)") && rest != ".calledByUs" {
			return true
		}
		if !more {
			return false
		}
	}
}

// packagePath is this package's import path as it stands in function names.
var packagePath = func() string {
	pc, _, _, _ := runtime.Caller(0)
	name := runtime.FuncForPC(pc).Name()
	slash := strings.LastIndexByte(name, '/')
	return name[:slash+strings.IndexByte(name[slash:], '.')]
}()
