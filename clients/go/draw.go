package pseudoword

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	generationv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/generation/v1"
)

// DrawOptions says how a sentence is drawn; what is zero takes the server's default, but for the seed.
type DrawOptions struct {
	// Negative is what to stay away from.
	Negative string
	// Seed is the first picture's seed, 0 being one like any other; picture i has Seed + i.
	Seed int64
	// Steps as the scheduler counts them.
	Steps int32
	// Guidance is the guidance scale, 1 to 30.
	Guidance float32
	// Scheduler is a name that GetModel lists, such as "ddim".
	Scheduler string
	// Width and Height in pixels, multiples of what GetModel tells.
	Width, Height int32
	// Count is the number of pictures; 0: 1.
	Count int32
	// Exact asks for pictures that are equal to the last bit whoever else is served.
	Exact bool
	// OnEvent, where set, is told everything that happens to the request.
	OnEvent func(*generationv1.GenerateResponse)
}

// Picture is a finished picture.
type Picture struct {
	// Data is the file, a PNG.
	Data []byte
	// Info says what the file is and what made it; the record is also inside the file.
	Info *generationv1.PictureInfo
}

// Draw draws a sentence in which `<concept>` is a word. Cancelling the context frees the work on the server.
func (c *Client) Draw(ctx context.Context, prompt string, options DrawOptions) ([]Picture, error) {
	settings := &generationv1.PictureSettings{
		Prompt:         prompt,
		NegativePrompt: options.Negative,
		Seed:           proto.Int64(options.Seed),
		Scheduler:      options.Scheduler,
		Exact:          options.Exact,
	}
	if options.Steps != 0 {
		settings.Steps = proto.Int32(options.Steps)
	}
	if options.Width != 0 {
		settings.Width = proto.Int32(options.Width)
	}
	if options.Height != 0 {
		settings.Height = proto.Int32(options.Height)
	}
	if options.Guidance != 0 {
		settings.GuidanceScale = proto.Float32(options.Guidance)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Generation.Generate(ctx, &generationv1.GenerateRequest{
		Parent: c.tenant, Settings: settings, Count: options.Count,
	})
	if err != nil {
		return nil, FromCall(err)
	}
	gathered := gathering{found: make([]Picture, max(options.Count, 1))}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return gathered.pictures()
		}
		if err != nil {
			return nil, FromCall(err)
		}
		if options.OnEvent != nil {
			options.OnEvent(event)
		}
		if err := gathered.add(event); err != nil {
			return nil, err
		}
	}
}

// gathering puts a request's chunks together; it begins with a place for each picture that was asked for.
type gathering struct {
	found []Picture
	done  *generationv1.Done
}

func (g *gathering) add(event *generationv1.GenerateResponse) error {
	if event.GetDone() != nil {
		g.done = event.GetDone()
	}
	chunk := event.GetChunk()
	if chunk == nil {
		return nil
	}
	if chunk.GetIndex() < 0 || int(chunk.GetIndex()) >= len(g.found) {
		return damaged(fmt.Sprintf("picture %d was not asked for", chunk.GetIndex()))
	}
	picture := &g.found[chunk.GetIndex()]
	picture.Data = append(picture.Data, chunk.GetData()...)
	if chunk.GetInfo() != nil {
		picture.Info = chunk.GetInfo()
	}
	return nil
}

// pictures fails with DATA_LOSS when something is missing or is not what its digest says.
func (g *gathering) pictures() ([]Picture, error) {
	if g.done == nil || int(g.done.GetCount()) != len(g.found) {
		return nil, damaged("the stream ended before all pictures had come")
	}
	for index, picture := range g.found {
		digest := sha256.Sum256(picture.Data)
		if hex.EncodeToString(digest[:]) != picture.Info.GetSha256() {
			return nil, damaged(fmt.Sprintf("picture %d is not the one that its digest names", index))
		}
	}
	return g.found, nil
}

func damaged(text string) *Error {
	failure := fromStatus(status.New(codes.DataLoss, text))
	failure.Reason = "ANSWER_DAMAGED"
	return failure
}
