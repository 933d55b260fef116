package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newTLSCmd(a *app) *cobra.Command {
	return newGroup("tls", "Make TLS certificates for the server and its clients", `  lunar tls init /etc/lunar/tls --host nbd.example.com
  lunar tls client /etc/lunar/tls backup`,
		newTLSInitCmd(a), newTLSClientCmd(a), newTLSRenewCmd(a))
}

// tlsOptions are what the verbs have in common.
type tlsOptions struct {
	hosts   []string
	clients []string
	days    string
	force   bool
}

const (
	defaultDays = "3650"
	maxDays     = 36500
	clientsDir  = "clients"
)

// tlsAnswer is what a verb has made.
type tlsAnswer struct {
	Dir     string    `json:"dir"`
	Files   []string  `json:"files"` // below Dir
	Expires time.Time `json:"expires"`
	Hosts   []string  `json:"hosts"`
	Clients []string  `json:"clients"` // their folders below Dir
	// Command lines by tool; NAME in them is a LUN.
	Commands []tlsCommand `json:"commands"`
}

type tlsCommand struct {
	Tool    string `json:"tool"`
	Command string `json:"command"`
}

func addDaysFlag(cmd *cobra.Command, o *tlsOptions) {
	cmd.Flags().StringVar(&o.days, "days", defaultDays, "how many `DAYS` the certificates are valid")
}

func (o *tlsOptions) period() (from, until time.Time, err error) {
	days, err := parseCount("--days", o.days, 1, maxDays)
	from = time.Now()
	return from, from.AddDate(0, 0, days), asUsage(err)
}

func newTLSInitCmd(a *app) *cobra.Command {
	var o tlsOptions
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Make a CA, the server's certificate and a client's",
		Long: `Makes in DIR, with new keys:

  ca-cert.pem ca-key.pem            the CA; its key makes further certificates
  server-cert.pem server-key.pem    the server's: DIR is its tls.dir
  clients/NAME/                     a folder for each client, to be copied there

and prints the command lines of nbd-client, qemu and libnbd that use them. The
server's certificate is valid for every --host, and for localhost, 127.0.0.1 and
::1. A client's NAME is the common name in its certificate: "lunar lun set DISK
--allow cn=NAME" gives it a LUN. Files that exist are not overwritten without
--force. Everything happens here; no server is asked.`,
		Example: `  lunar tls init /etc/lunar/tls --host nbd.example.com --host 10.0.0.5
  lunar tls init ./tls --client host1 --client host2 --days 365`,
		Args: wantArgs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error { return runTLSInit(cmd, a, args[0], o) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&o.hosts, "host", nil, "`HOST` name or IP address by which clients reach the server; may be repeated")
	flags.StringArrayVar(&o.clients, "client", []string{"client"}, "`NAME` of a client; may be repeated")
	flags.BoolVar(&o.force, "force", false, "replace files that exist: all clients need new ones then")
	addDaysFlag(cmd, &o)
	return cmd
}

func runTLSInit(cmd *cobra.Command, a *app, dir string, o tlsOptions) error {
	hosts, err := serverHosts(o.hosts)
	if err != nil {
		return err
	}
	if err := checkClients(o.clients); err != nil {
		return err
	}
	from, until, err := o.period()
	if err != nil {
		return err
	}
	ca, own, err := newAuthority(from, until)
	if err != nil {
		return err
	}
	server, err := ca.server(hosts, from, until)
	if err != nil {
		return err
	}
	files := slices.Concat(own.files(caCertFile, caKeyFile), server.files(serverCertFile, serverKeyFile))
	more, err := clientFiles(ca, own.cert, o.clients, from, until)
	if err != nil {
		return err
	}
	return finishTLS(cmd, a, dir, append(files, more...), o.force, tlsAnswer{Expires: until.UTC(), Hosts: hosts, Clients: o.clients})
}

func newTLSClientCmd(a *app) *cobra.Command {
	var o tlsOptions
	cmd := &cobra.Command{
		Use:   "client DIR NAME...",
		Short: "Make certificates for more clients",
		Long: `Makes DIR/clients/NAME with a certificate of the CA in DIR, which "lunar tls init"
made.`,
		Example: "  lunar tls client /etc/lunar/tls backup",
		Args:    wantArgs("DIR", "NAME..."),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.clients = args[1:]
			return runTLSClient(cmd, a, args[0], o)
		},
	}
	cmd.Flags().BoolVar(&o.force, "force", false, "replace files that exist")
	addDaysFlag(cmd, &o)
	return cmd
}

func runTLSClient(cmd *cobra.Command, a *app, dir string, o tlsOptions) error {
	if err := checkClients(o.clients); err != nil {
		return err
	}
	from, until, err := o.period()
	if err != nil {
		return err
	}
	ca, caPEM, err := loadAuthority(dir)
	if err != nil {
		return err
	}
	hosts, err := certificateHosts(filepath.Join(dir, serverCertFile))
	if err != nil {
		hosts = []string{"localhost"}
	}
	files, err := clientFiles(ca, caPEM, o.clients, from, until)
	if err != nil {
		return err
	}
	return finishTLS(cmd, a, dir, files, o.force, tlsAnswer{Expires: earlier(until, ca.cert.NotAfter), Hosts: hosts, Clients: o.clients})
}

func newTLSRenewCmd(a *app) *cobra.Command {
	var o tlsOptions
	cmd := &cobra.Command{
		Use:   "renew DIR",
		Short: "Replace the server's certificate by a new one of the same CA",
		Long: `Replaces server-cert.pem and server-key.pem in DIR. Clients need nothing new. A
running server takes them up at SIGHUP, for connections from then on. Without
--host the new certificate has the names of the old one.`,
		Example: `  lunar tls renew /etc/lunar/tls && systemctl reload lunar`,
		Args:    wantArgs("DIR"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runTLSRenew(cmd, a, args[0], o) },
	}
	cmd.Flags().StringArrayVar(&o.hosts, "host", nil, "`HOST` name or IP address by which clients reach the server; may be repeated")
	addDaysFlag(cmd, &o)
	return cmd
}

func runTLSRenew(cmd *cobra.Command, a *app, dir string, o tlsOptions) error {
	from, until, err := o.period()
	if err != nil {
		return err
	}
	ca, _, err := loadAuthority(dir)
	if err != nil {
		return err
	}
	if len(o.hosts) == 0 {
		if o.hosts, err = certificateHosts(filepath.Join(dir, serverCertFile)); err != nil {
			return fmt.Errorf("the names of the old certificate: %w; give them with --host", err)
		}
	}
	hosts, err := serverHosts(o.hosts)
	if err != nil {
		return err
	}
	server, err := ca.server(hosts, from, until)
	if err != nil {
		return err
	}
	return finishTLS(cmd, a, dir, server.files(serverCertFile, serverKeyFile), true, tlsAnswer{Expires: earlier(until, ca.cert.NotAfter), Hosts: hosts})
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		a = b
	}
	return a.UTC()
}

// serverHosts checks the names given and adds those that are always there.
func serverHosts(hosts []string) ([]string, error) {
	var list []string
	for _, h := range append(slices.Clone(hosts), "localhost", "127.0.0.1", "::1") {
		if err := checkHost(h); err != nil {
			return nil, asUsage(err)
		}
		if !slices.Contains(list, h) {
			list = append(list, h)
		}
	}
	return list, nil
}

func checkClients(names []string) error {
	for _, n := range names {
		if err := lun.CheckName("client", n); err != nil {
			return asUsage(err)
		}
	}
	return nil
}

// clientFiles makes a folder's worth of files for each client.
func clientFiles(ca *authority, caPEM []byte, names []string, from, until time.Time) ([]certFile, error) {
	var files []certFile
	for _, name := range names {
		id, err := ca.client(name, from, until)
		if err != nil {
			return nil, err
		}
		for _, f := range append(id.files(clientCertFile, clientKeyFile), certFile{caCertFile, caPEM, 0o644}) {
			f.name = filepath.Join(clientsDir, name, f.name)
			files = append(files, f)
		}
	}
	return files, nil
}

// finishTLS writes the files below dir and prints what was made.
func finishTLS(cmd *cobra.Command, a *app, dir string, files []certFile, force bool, made tlsAnswer) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	made.Dir = dir
	for i, f := range files {
		made.Files = append(made.Files, f.name)
		files[i].name = filepath.Join(dir, f.name)
	}
	if err := writeCertFiles(files, force); err != nil {
		return err
	}
	for i, name := range made.Clients {
		made.Clients[i] = filepath.Join(clientsDir, name)
	}
	made.Commands = tlsCommands(made)
	return a.print(cmd, made, func(w io.Writer) error { return writeTLS(w, made) })
}

// tlsCommands are the command lines that use what was made.
func tlsCommands(m tlsAnswer) []tlsCommand {
	host := m.Hosts[0]
	var list []tlsCommand
	if slices.Contains(m.Files, serverCertFile) {
		list = append(list, tlsCommand{"lunar", "lunar serve --data DATA --listen tcp://" + net.JoinHostPort(listenHost(host), "10809") +
			" --tls required --tls-dir " + shellQuote(m.Dir)})
	}
	if len(m.Clients) == 0 {
		return list
	}
	dir := filepath.Join(m.Dir, m.Clients[0])
	file := func(name string) string { return shellQuote(filepath.Join(dir, name)) }
	qemuDir := strings.ReplaceAll(dir, ",", ",,")
	return append(list,
		tlsCommand{"nbd-client", fmt.Sprintf("nbd-client %s 10809 /dev/nbd0 -name NAME -tlshostname %s -cacertfile %s -certfile %s -keyfile %s",
			host, host, file(caCertFile), file(clientCertFile), file(clientKeyFile))},
		tlsCommand{"qemu", "qemu-img info --object " + shellQuote("tls-creds-x509,id=tls0,endpoint=client,dir="+qemuDir) +
			" --image-opts " + shellQuote("driver=nbd,host="+host+",port=10809,export=NAME,tls-creds=tls0")},
		tlsCommand{"libnbd", "nbdinfo " + shellQuote("nbds://"+net.JoinHostPort(host, "10809")+"/NAME?tls-certificates="+dir)},
	)
}

// listenHost is where to listen to be reached by a name.
func listenHost(host string) string {
	if net.ParseIP(host) != nil {
		return host
	}
	if host == "localhost" {
		return "127.0.0.1"
	}
	return "0.0.0.0"
}

// shellQuote quotes for sh what needs it.
func shellQuote(s string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("/._-=,:+@%", c)
	}
	if s != "" && !strings.ContainsFunc(s, func(c rune) bool { return !plain(c) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func writeTLS(w io.Writer, m tlsAnswer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: valid until %s\n", m.Dir, m.Expires.Format("2006-01-02"))
	for _, f := range m.Files {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	fmt.Fprintf(&b, "The server is %s.\n", strings.Join(m.Hosts, ", "))
	for _, c := range m.Commands {
		fmt.Fprintf(&b, "\n# %s\n%s\n", c.Tool, c.Command)
	}
	if len(m.Clients) > 0 {
		fmt.Fprintf(&b, "\nNAME is a LUN. Copy %s to the client, and use its place there.\n", filepath.Join(m.Dir, m.Clients[0])+string(os.PathSeparator))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
