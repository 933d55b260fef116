package main

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"

	"lunar/integration/client"
)

// pairs measures what snapshots cost: two LUNs of one server with the same history, one of them with a snapshot before
// each batch of writes.
func (b *bench) pairs() error {
	wanted := b.wanted(pairs)
	if len(wanted) == 0 {
		return nil
	}
	plain, err := start("lunar", b.lunar, b.top, b.size)
	if err != nil {
		return err
	}
	defer plain.stop()
	if err := plain.lunar("lun", "create", "snaps", fmt.Sprint(b.size), "--limit", "none"); err != nil {
		return err
	}
	snaps := *plain // the same process, another export
	snaps.uri = strings.Replace(plain.uri, "/disk?", "/snaps?", 1)
	fmt.Printf("%d snapshots, each followed by %d random 4K writes; %d pairs\n", snapshotCount, snapshotWrites, b.pairRuns)
	for _, s := range []*server{plain, &snaps} {
		if err := b.fill(s); err != nil {
			return err
		}
		if err := b.history(s, s == &snaps); err != nil {
			return err
		}
	}
	for _, r := range wanted {
		fmt.Println(r.Title)
		samples := map[string][]sample{}
		for i := range b.pairRuns {
			order := []*server{plain, &snaps}
			if i%2 == 1 {
				order[0], order[1] = order[1], order[0]
			}
			for _, s := range order {
				m, err := measure(r, s, b, i+1)
				if err != nil {
					return err
				}
				name := "with"
				if s == plain {
					name = "without"
				}
				samples[name] = append(samples[name], m)
			}
		}
		b.report.addPair(r, samples["without"], samples["with"])
	}
	return nil
}

// history writes the same random blocks to a LUN, with a snapshot before each batch or without.
func (b *bench) history(s *server, snapshots bool) error {
	u, err := url.Parse(s.uri)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(u.Path, "/")
	c, err := client.Dial("unix", u.Query().Get("socket"), name)
	if err != nil {
		return err
	}
	defer c.Disconnect()
	random := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 4096)
	for i := range snapshotCount {
		if snapshots {
			if err := s.lunar("snapshot", "create", fmt.Sprintf("%s@s%03d", name, i)); err != nil {
				return err
			}
		}
		for range snapshotWrites {
			for j := range p {
				p[j] = byte(random.Uint32())
			}
			if err := c.Write(p, random.Int64N(b.size/4096)*4096, false); err != nil {
				return err
			}
		}
	}
	return c.Flush()
}
