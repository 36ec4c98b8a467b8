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

// DrawOptions are the options of Draw. A field that is zero has the server's default, except Seed.
type DrawOptions struct {
	// Negative is the negative prompt.
	Negative string
	// Seed is the seed of the first picture; picture i has Seed + i. 0 is an ordinary seed.
	Seed int64
	// Steps is the number of steps, as the scheduler counts them.
	Steps int32
	// Guidance is the guidance scale, 1 to 30.
	Guidance float32
	// Scheduler is the name of one of GetModel's schedulers, such as "ddim".
	Scheduler string
	// Width and Height are in pixels, multiples of GetModel's size_multiple.
	Width, Height int32
	// Count is the number of pictures; 0: 1.
	Count int32
	// Exact requests pictures that do not depend on other requests in any bit.
	Exact bool
	// OnEvent, if set, is called with each event of the request.
	OnEvent func(*generationv1.GenerateResponse)
}

// Picture is a finished picture.
type Picture struct {
	// Data is the file, a PNG.
	Data []byte
	// Info describes the file and has the picture's record, which is also inside the file.
	Info *generationv1.PictureInfo
}

// Draw draws a prompt, in which `<concept>` is a word. Cancelling the context cancels the request on the server.
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
	received := assembly{found: make([]Picture, max(options.Count, 1))}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return received.pictures()
		}
		if err != nil {
			return nil, FromCall(err)
		}
		if options.OnEvent != nil {
			options.OnEvent(event)
		}
		if err := received.add(event); err != nil {
			return nil, err
		}
	}
}

// assembly joins the chunks of a request's pictures. found has one element for each requested picture.
type assembly struct {
	found []Picture
	done  *generationv1.Done
}

func (a *assembly) add(event *generationv1.GenerateResponse) error {
	if event.GetDone() != nil {
		a.done = event.GetDone()
	}
	chunk := event.GetChunk()
	if chunk == nil {
		return nil
	}
	if chunk.GetIndex() < 0 || int(chunk.GetIndex()) >= len(a.found) {
		return damaged(fmt.Sprintf("picture %d was not requested", chunk.GetIndex()))
	}
	picture := &a.found[chunk.GetIndex()]
	picture.Data = append(picture.Data, chunk.GetData()...)
	if chunk.GetInfo() != nil {
		picture.Info = chunk.GetInfo()
	}
	return nil
}

// pictures returns DATA_LOSS if a picture is missing or does not match its digest.
func (a *assembly) pictures() ([]Picture, error) {
	if a.done == nil || int(a.done.GetCount()) != len(a.found) {
		return nil, damaged("the stream ended before all pictures were received")
	}
	for index, picture := range a.found {
		digest := sha256.Sum256(picture.Data)
		if hex.EncodeToString(digest[:]) != picture.Info.GetSha256() {
			return nil, damaged(fmt.Sprintf("picture %d does not match its digest", index))
		}
	}
	return a.found, nil
}

func damaged(text string) *Error {
	failure := fromStatus(status.New(codes.DataLoss, text))
	failure.Reason = "ANSWER_DAMAGED"
	return failure
}
