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
// a snapshot as LUN@NAME, and as the empty name the only LUN, if there is one.
type backend struct{ pool pool }

func (b *backend) Exports(context.Context, nbd.Client) ([]nbd.ExportInfo, error) {
	exports := b.pool.Exports()
	infos := make([]nbd.ExportInfo, len(exports))
	for i, e := range exports {
		infos[i] = nbd.ExportInfo{Name: e.Name, Description: e.Description}
	}
	return infos, nil
}

func (b *backend) Open(_ context.Context, name string, _ nbd.Client) (nbd.Device, error) {
	if name == "" {
		luns := b.pool.LUNs()
		if len(luns) != 1 {
			return nil, fmt.Errorf("an empty export name means the only LUN, but there are %d: %w", len(luns), nbd.ErrUnknownExport)
		}
		name = luns[0].Name
	}
	lunName, snapshot, at := strings.Cut(name, "@")
	if at && snapshot == "" {
		return nil, fmt.Errorf("export %q: %w", name, nbd.ErrUnknownExport)
	}
	if !at {
		if err := b.online(lunName); err != nil {
			return nil, err
		}
	}
	v, err := b.pool.OpenVolume(lunName, snapshot)
	if err != nil {
		return nil, exportError(err)
	}
	return v, nil
}

// online refuses a LUN that is offline. Who takes it offline while a connection
// is being opened disconnects its clients afterwards, this one among them.
func (b *backend) online(name string) error {
	info, err := b.pool.LUN(name)
	if err != nil {
		return exportError(err)
	}
	if !info.Online {
		return lun.Errorf(lun.ErrRefused, "LUN %s is offline; bring it back with lunar lun online %s", name, name)
	}
	return nil
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
	DisconnectExport(name string) int
	DisconnectID(id uint64) error
}

// clientControl is how the pool sees and ends connections.
type clientControl struct{ server nbdServer }

func (c clientControl) Clients() []lun.ClientInfo {
	clients := c.server.Clients()
	infos := make([]lun.ClientInfo, len(clients))
	for i, cl := range clients {
		infos[i] = lun.ClientInfo{ID: cl.ID, Export: cl.Export, Address: cl.Address, Since: cl.Since.UTC(), TLS: cl.TLS}
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
