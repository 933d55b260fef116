package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the release build (-ldflags "-X main.version=...").
var version = ""

// versionInfo is `lunar version`.
type versionInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
}

func buildVersion() versionInfo {
	v := versionInfo{Version: version, Commit: "unknown", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if ok {
		if v.Version == "" {
			v.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	if v.Version == "" || v.Version == "(devel)" {
		v.Version = "devel"
	}
	return v
}

func newVersionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this program",
		Example: "  lunar version -o json",
		Args:    wantArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runVersion(cmd, a) },
	}
}

func runVersion(cmd *cobra.Command, a *app) error {
	v := buildVersion()
	return a.print(cmd, v, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "lunar %s (commit %s, %s)\n", v.Version, v.Commit, v.Go)
		return err
	})
}
