package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// outputFormat is the value of -o.
type outputFormat string

const (
	outputTable outputFormat = "table"
	outputJSON  outputFormat = "json"
)

func (f *outputFormat) String() string { return string(*f) }
func (f *outputFormat) Type() string   { return "FORMAT" }

func (f *outputFormat) Set(s string) error {
	switch o := outputFormat(s); o {
	case outputTable, outputJSON:
		*f = o
		return nil
	}
	return fmt.Errorf("unknown format %q: want table or json", s)
}

// print writes v as JSON, or else what table writes.
func (a *app) print(cmd *cobra.Command, v any, table func(io.Writer) error) error {
	if a.output == outputJSON {
		return printJSON(cmd.OutOrStdout(), v)
	}
	return table(cmd.OutOrStdout())
}

// printList is print for the lists of the contract: an empty one is [].
func printList[T any](a *app, cmd *cobra.Command, list []T, table func([]T) *table) error {
	if list == nil {
		list = []T{}
	}
	return a.print(cmd, list, func(w io.Writer) error { return table(list).write(w) })
}

// printOne prints the object that a verb made or changed, as a list of one.
func printOne[T any](a *app, cmd *cobra.Command, item T, table func([]T) *table) error {
	return a.print(cmd, item, func(w io.Writer) error { return table([]T{item}).write(w) })
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printJSONLine writes v in one line.
func printJSONLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
