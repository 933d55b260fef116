package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"lunar/lun"
	"lunar/nbd"
)

// backend offers the pool's LUNs and snapshots to the NBD server: a LUN as NAME,
// a snapshot as LUN@NAME, and as the empty name the only LUN, if there is one. A
// client sees of a LUN and its snapshots all or, if the LUN's list of who may
// attach has no entry for it, nothing.
type backend struct {
	pool     pool
	limiters limiters
}

// export is what a connection has opened, held to its LUN's limits.
type export struct {
	volume
	*limiter
	limiters *limiters
	client   uint64
}

func (e *export) Close() error {
	e.limiters.release(e.client, e.limiter)
	return e.volume.Close()
}

// admits says whether a client may see a LUN.
func admits(a lun.Access, c nbd.Client) bool { return a.Allow.Match(c.IP, c.CommonName) }

func (b *backend) Exports(_ context.Context, client nbd.Client) ([]nbd.ExportInfo, error) {
	exports := b.pool.Exports(func(a lun.Access) bool { return admits(a, client) })
	infos := make([]nbd.ExportInfo, len(exports))
	for i, e := range exports {
		infos[i] = nbd.ExportInfo{Name: e.Name, Description: e.Description}
	}
	return infos, nil
}

func (b *backend) Open(_ context.Context, name string, client nbd.Client) (nbd.Device, error) {
	if name == "" {
		name = b.onlyLUN(client)
	}
	lunName, snapshot, at := strings.Cut(name, "@")
	access, ok := b.pool.Access(lunName)
	if !ok || !admits(access, client) || at && snapshot == "" {
		return nil, nbd.ErrUnknownExport
	}
	// Who takes a LUN off line while a connection is being opened disconnects its
	// clients afterwards, this one among them; the same for who may attach.
	if !at && !access.Online {
		return nil, lun.Errorf(lun.ErrRefused, "LUN %s is offline; bring it back with lunar lun online %s", lunName, lunName)
	}
	v, err := b.pool.OpenVolume(lunName, snapshot)
	if err != nil {
		return nil, exportError(err)
	}
	m := b.limiters.use(client.ID, func() lun.Access {
		if now, ok := b.pool.Access(lunName); ok && now.UUID == access.UUID {
			return now
		}
		return access
	})
	return &export{v, m, &b.limiters, client.ID}, nil
}

// onlyLUN is the name of the only LUN that a client may see, "" if there are
// more or none: an empty export name must not tell of the others either.
func (b *backend) onlyLUN(client nbd.Client) string {
	var names []string
	b.pool.Exports(func(a lun.Access) bool {
		if admits(a, client) {
			names = append(names, a.LUN)
		}
		return false
	})
	if len(names) != 1 {
		return ""
	}
	return names[0]
}

// changed applies a LUN's settings to the clients that are attached: its limits,
// and who may be.
func (b *backend) changed(name string, server nbdServer) {
	access, ok := b.pool.Access(name)
	if !ok {
		return
	}
	attached := b.limiters.changed(func() lun.Access {
		if now, ok := b.pool.Access(name); ok {
			return now
		}
		return access
	})
	if len(access.Allow) > 0 {
		// Those that are attached may have come by a former name of the LUN; those
		// that are about to be are not counted yet.
		server.Disconnect(func(c nbd.Client) bool {
			of, _, _ := strings.Cut(c.Export, "@")
			return (attached[c.ID] || of == name || of == "") && !admits(access, c)
		})
	}
}

func exportError(err error) error {
	if errors.Is(err, lun.ErrNotFound) || errors.Is(err, lun.ErrInvalid) {
		return fmt.Errorf("%w: %w", nbd.ErrUnknownExport, err)
	}
	return err
}

// nbdServer is what this program needs of nbd.Server; tests have one without
// connections.
type nbdServer interface {
	Serve(context.Context, net.Listener, nbd.ListenerOptions) error
	Shutdown(context.Context) error
	Clients() []nbd.Client
	Disconnect(match func(nbd.Client) bool) int
	DisconnectExport(name string) int
	DisconnectID(id uint64) error
}

// clientControl is how the pool sees and ends connections.
type clientControl struct{ server nbdServer }

func (c clientControl) Clients() []lun.ClientInfo {
	clients := c.server.Clients()
	infos := make([]lun.ClientInfo, len(clients))
	for i, cl := range clients {
		infos[i] = lun.ClientInfo{ID: cl.ID, Export: cl.Export, Address: cl.Address, Since: cl.Since.UTC(), TLS: cl.TLS, CommonName: cl.CommonName}
	}
	return infos
}

func (c clientControl) Disconnect(export string) { c.server.DisconnectExport(export) }

func (c clientControl) DisconnectID(id uint64) error {
	err := c.server.DisconnectID(id)
	if errors.Is(err, nbd.ErrUnknownClient) {
		return lun.Errorf(lun.ErrNotFound, "client %d: there is no such client; see lunar client list", id)
	}
	return err
}
