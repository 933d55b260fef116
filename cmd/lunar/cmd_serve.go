package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

type serveOptions struct{ pprof string }

func newServeCmd(a *app) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server of one pool",
		Long: `Serves the pool in DIR, which is made if it is missing. NBD is served on
tcp://127.0.0.1:10809 and unix://DIR/nbd.sock, unless --listen says otherwise; the
admin socket is unix://DIR/admin.sock. When everything accepts, one line goes to
stdout:

  ready nbd=tcp://127.0.0.1:10809 nbd=unix:///D/nbd.sock admin=unix:///D/admin.sock

The log goes to stderr. SIGTERM and SIGINT end the server cleanly, a second one at
once. SIGHUP reads the TLS certificates again.

TLS is off unless --tls, or ?tls=MODE behind an address, says allowed or required;
"lunar tls init" makes the certificates. Unix sockets have TLS only where their
address says so. Sockets that systemd passes (LISTEN_FDS) serve NBD in place of
the default addresses.

` + configLong + `
"lunar config show" lists the keys.`,
		Example: `  lunar serve --data ./lunar-data
  lunar serve --data /srv/lunar --capacity 500G --listen tcp://0.0.0.0:10809
  lunar serve --data /srv/lunar --listen "tcp://0.0.0.0:10809?tls=required" --tls-dir /etc/lunar/tls
  lunar serve --config /etc/lunar/lunar.yaml`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return runServe(cmd, a, o) },
	}
	addConfigFlags(cmd)
	cmd.Flags().StringVar(&o.pprof, "pprof", "", "serve profiles over HTTP on `HOST:PORT`")
	must(cmd.Flags().MarkHidden("pprof"))
	return cmd
}

func runServe(cmd *cobra.Command, a *app, o serveOptions) error {
	c, err := loadConfig(cmd)
	if err != nil {
		return err
	}
	if c.Data == "" {
		return usagef("the data folder is missing: want --data DIR, %s or the key data", envName("data"))
	}
	if c.Passed, err = passedListeners(os.Getenv, os.Getpid()); err != nil {
		return err
	}
	// From here on SIGHUP reads the certificates again; it does not end anything.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	log := newLogger(cmd.ErrOrStderr(), c)
	applyMemory(c)
	if o.pprof != "" {
		stop, err := servePprof(o.pprof, log)
		if err != nil {
			return err
		}
		defer stop()
	}
	s, err := startServer(cmd.Context(), a, c, log)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), s.readyLine()); err != nil {
		log.Warn("the ready line could not be written", "error", err)
	}
	notifyReady(os.Getenv, log)
	return s.run(cmd.Context(), hangup)
}

func newLogger(w io.Writer, c *config) *slog.Logger {
	var level slog.Level
	must(level.UnmarshalText([]byte(c.LogLevel))) // checked by the configuration
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// applyMemory changes the collector only where the configuration says so.
func applyMemory(c *config) {
	if c.MemoryLimit > 0 {
		debug.SetMemoryLimit(c.MemoryLimit)
	}
	if c.GCPercent > 0 {
		debug.SetGCPercent(c.GCPercent)
	}
}

// servePprof is for developers; it is not in the help.
func servePprof(addr string, log *slog.Logger) (stop func(), err error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("pprof on %s: %w; give another address", addr, bareError(err))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(ln) }()
	log.Info("profiles are served", "address", ln.Addr().String())
	return func() { _ = server.Shutdown(context.Background()) }, nil
}
