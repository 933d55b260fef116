package nbd_test

import (
	"fmt"
	"testing"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// manySnapshots is a device with more snapshots than a list names, newest first.
type manySnapshots struct{ *nbdtest.Memory }

func (manySnapshots) ChangedContexts() []string {
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprint("s", len(names)-i)
	}
	return names
}

// TestManyContexts: a list is bounded and names the newest; every snapshot can
// still be asked for by its name.
func TestManyContexts(t *testing.T) {
	_, addr := nbdtest.Serve(t, nbd.Options{Backend: one{manySnapshots{nbdtest.NewMemory("mem", 1<<20)}}}, nbd.ListenerOptions{})
	c := nbdtest.Dial(t, addr)
	c.MustAck(nbdtest.OptStructuredReply, nil)
	for query, want := range map[string]int{"": 1 + 2*257, "lunar:": 257, "qemu:dirty-bitmap:": 257, "base:": 1, "lunar:changed:s1": 1, "lunar:changed:s1001": 0} {
		var queries []string
		if query != "" {
			queries = []string{query, query}
		}
		list := c.Option(nbdtest.OptListMeta, nbdtest.MetaData("mem", queries...))
		if len(list) != want+1 {
			t.Errorf("LIST %q: %d contexts, want %d", query, len(list)-1, want)
		}
		if query == "lunar:" && (string(list[0].Data[4:]) != "lunar:changed:s1000" || string(list[256].Data[4:]) != "lunar:changed:") {
			t.Errorf("from %q to %q", list[0].Data[4:], list[256].Data[4:])
		}
	}
	list := c.Option(nbdtest.OptSetMeta, nbdtest.MetaData("mem", "qemu:dirty-bitmap:s1", "lunar:changed:s1000"))
	if len(list) != 3 || string(list[0].Data[4:]) != "lunar:changed:s1000" || string(list[1].Data[4:]) != "qemu:dirty-bitmap:s1" {
		t.Errorf("SET: %v", list)
	}
}

// TestFastZero: what would not be faster than writing is refused, and not done.
func TestFastZero(t *testing.T) {
	_, addr := nbdtest.Serve(t, nbd.Options{Backend: nbdtest.NewBackend(nbdtest.NewMemory("mem", 1<<20))}, nbd.ListenerOptions{})
	c := nbdtest.Attach(t, addr, "mem", true)
	c.Write(0, []byte("hello"))
	if r := c.Do(nbdtest.FlagFastZero, nbdtest.CmdZero, 0, 5, nil); r.Errno != nbdtest.ENOTSUP {
		t.Errorf("FAST_ZERO of a part of a block: error %d", r.Errno)
	}
	if string(c.Read(0, 5)) != "hello" {
		t.Error("the refused request was carried out")
	}
	c.Must(nbdtest.FlagFastZero, nbdtest.CmdZero, 0, 512, nil)
	c.Must(0, nbdtest.CmdZero, 1, 5, nil)
	if string(c.Read(0, 5)) != "\x00\x00\x00\x00\x00" {
		t.Error("not zeroed")
	}
}
