package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit statuses of the contract.
const (
	exitOK         = 0
	exitFailed     = 1 // refused or failed
	exitUnparsable = 2 // unknown verb or flag, bad size, name or percentage
)

// usageError is what makes a command line unparsable.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// asUsage marks an error of a parser as one of the command line; nil stays nil.
func asUsage(err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err}
}

// statusError ends the process with a status of its own; an empty text prints
// nothing.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

// errNotReached marks that no server answered, which `status --check` reports as
// status 3.
var errNotReached = errors.New("server not reached")

// report prints err in one line and returns the exit status for it.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	status := exitFailed
	var usage *usageError
	var own *statusError
	switch {
	case errors.As(err, &usage):
		status = exitUnparsable
	case errors.As(err, &own):
		status = own.status
	}
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		text = "interrupted by a signal; run it again"
	}
	if text != "" {
		fmt.Fprintf(stderr, "lunar: %s\n", oneLine(text))
	}
	return status
}

// oneLine joins lines and takes control characters out of a message.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.Map(printable, s)), " ")
	return s
}

// printable maps control characters to blanks: names and descriptions come from
// other people, and must not drive a terminal.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
		return ' '
	}
	return r
}

// flagError says which flag of which verb is wrong, why, and where the help is.
func flagError(cmd *cobra.Command, err error) error {
	why := err.Error()
	var value *pflag.InvalidValueError
	if errors.As(err, &value) {
		why = fmt.Sprintf("--%s: %v", value.GetFlag().Name, errors.Unwrap(value))
		if value.GetFlag().Value.Type() == "bool" {
			why = fmt.Sprintf("--%s: %q: want true or false", value.GetFlag().Name, value.GetValue())
		}
	}
	return usagef("%s: %s; %s", verbPath(cmd), why, seeHelp(cmd))
}

// verbPath is the verb without the program's name: "lun create".
func verbPath(cmd *cobra.Command) string {
	_, verb, ok := strings.Cut(cmd.CommandPath(), " ")
	if !ok {
		return "command line"
	}
	return verb
}

func seeHelp(cmd *cobra.Command) string {
	return fmt.Sprintf("see %q", cmd.CommandPath()+" --help")
}
