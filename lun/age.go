package lun

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/store/segment"
)

// ageFile says how new the index was at least. It is written over in place behind
// each commit and not synced: what a power cut leaves is older, or nothing, and
// promises less. Without it damage in the last 32 KiB of Pebble's log would pass
// for a torn tail, and an old index for the newest.
const ageFile = "index.at"

type age struct {
	Index    string `json:"index"`
	Epoch    uint64 `json:"epoch"`
	Position uint64 `json:"position"`
	CRC      uint32 `json:"crc"` // CRC32C of the same with 0
}

func (a age) sealed() []byte {
	a.CRC = 0
	body, _ := json.Marshal(a) // numbers and a text
	a.CRC = segment.Checksum(body)
	body, _ = json.Marshal(a)
	return body
}

// noteAge writes down what was just committed. A failure costs the proof only.
func (p *Pool) noteAge() {
	if p.rebuilding {
		return
	}
	f, err := p.fs.OpenReadWrite(p.path(ageFile), vfs.WriteCategoryUnspecified)
	if err != nil {
		return
	}
	var b [256]byte
	n := copy(b[:], age{Index: p.state.Index, Epoch: p.state.Epoch, Position: p.state.Position}.sealed())
	for i := n; i < len(b); i++ {
		b[i] = ' '
	}
	_, _ = f.WriteAt(b[:], 0)
	_ = f.Close()
}

// tooOld says whether the pool's index once was newer than it is now.
func (p *Pool) tooOld(s *durable) error {
	if p.rebuilding {
		return nil // it is, on purpose
	}
	body, err := readFile(p.fs, p.path(ageFile))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var a age
	if json.Unmarshal(body, &a) != nil || !bytes.Equal(a.sealed(), bytes.TrimRight(body, " ")) || a.Index == "" || a.Index != s.Index {
		return nil
	}
	if a.Epoch > s.Epoch || a.Position > s.Position {
		return Errorf(ErrCorrupt, "the index is that of log entry %d, and was that of entry %d: a part of its own log is lost; stop here and run `lunar pool repair`", s.Position, a.Position)
	}
	return nil
}
