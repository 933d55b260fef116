package nbd_test

import (
	"context"

	"lunar/nbd"
)

// one is a backend of one device, whatever name is asked for.
type one struct{ device nbd.Device }

func (o one) Exports(context.Context, nbd.Client) ([]nbd.ExportInfo, error) {
	return []nbd.ExportInfo{{Name: "mem"}}, nil
}

func (o one) Open(context.Context, string, nbd.Client) (nbd.Device, error) { return o.device, nil }
